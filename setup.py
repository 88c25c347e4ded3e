"Package metadata from settings.ini; name, description and nbdev's own settings live in pyproject.toml."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root, lib = Path(__file__).parent, 'echo_lit'
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']


def lines(key): return cfg[key].strip().splitlines()


setup(
    version=re.search(r"^__version__ = ['\"](.+?)['\"]", (root/lib/'__init__.py').read_text(encoding='utf-8'), re.M)[1],
    author=cfg['author'], author_email=cfg['author_email'], license=cfg['license'], keywords=cfg['keywords'].split(),
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=[lib, f'{lib}.*']), include_package_data=True,
    install_requires=lines('requirements'), extras_require={k: lines(f'{k}_requirements') for k in ('dev', 'codecs')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': [f'{lib} = {lib}._modidx:d']})
