"A literate library for echocardiography foundation models. Research use only."
from importlib import import_module

__version__ = '0.1.0'

_homes = {
    'core': ('Clip', 'EchoError', 'Failure', 'SetAside', 'Study'),
    'vocabulary': ('COARSE_VIEWS', 'FINDINGS', 'SECTIONS', 'Finding'),
    'data.cine': ('read_cine',),
    'data.study': ('open_study',),
    'data.contract': ('InputContract',),
    'models.hub': ('licences', 'list_models', 'load_model'),
    'interpret.interpreter': ('Interpreter',)}
_where = {name: home for home, names in _homes.items() for name in names}
__all__ = sorted(_where)


def __getattr__(name):
    "Top-level names load their module when first asked for, so that `import echo_lit` stays light."
    if name not in _where: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'{__name__}.{_where[name]}'), name)
    globals()[name] = value
    return value


def __dir__(): return sorted({*globals(), *__all__})
