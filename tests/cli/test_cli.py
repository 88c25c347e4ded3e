import csv, html.parser, json, re, shutil, subprocess, sys
from pathlib import Path
import jsonschema, pytest
from echo_lit.cli import run
from echo_lit.interpret.record import SCHEMA
from echo_lit.terminal import csv_text

@pytest.fixture
def cli(capfd):
    def go(*words):
        code = run([str(w) for w in words])
        out, err = capfd.readouterr()
        assert 'Traceback' not in out + err
        assert not re.search('[\x00-\x08\x0b-\x1f\x7f\x9b]', out + err.replace('\r', ''))
        return code, out, err
    return go

class Page(html.parser.HTMLParser):
    "Tags and attributes of a page."
    def __init__(self, text):
        super().__init__()
        self.tags, self.attrs, self.words = [], [], ''
        self.feed(text)
    def handle_starttag(self, tag, attrs): self.tags.append(tag); self.attrs += attrs
    def handle_data(self, data): self.words += data

def check_page(path):
    text = Path(path).read_text(encoding='utf-8'); page = Page(text)
    assert not {'script', 'iframe', 'link', 'object', 'embed', 'form', 'base', 'a', 'img'} & set(page.tags)
    assert not [k for k, _ in page.attrs if k.startswith('on') or k in ('src', 'href', 'style', 'srcset', 'action')]
    assert not re.search(r'https?://|@import|url\((?!data:image/webp;base64,)', text)
    assert "default-src 'none'" in text and 'Research use only' in page.words
    return page

def test_one_study(cli, model, clips, tmp_path):
    code, out, err = cli('interpret', clips/'s0', '--model', model, '--out', tmp_path/'out')
    assert code == 0 and 'Research use only' in out
    record = json.loads((tmp_path/'out'/'report.json').read_text()); jsonschema.validate(record, SCHEMA)
    assert len(record['views']) == 2 and sum(s['assessed'] for s in record['report']) > 0
    assert all(c in check_page(tmp_path/'out'/'report.html').words for c in (v['clip'] for v in record['views']))
    assert str(clips) not in (tmp_path/'out'/'report.html').read_text() + json.dumps(record)

def test_several_studies(cli, model, clips, tmp_path):
    code, out, _ = cli('interpret', clips/'s0', clips/'s1', tmp_path/'nowhere', '--model', model, '--out', tmp_path/'out')
    rows = list(csv.DictReader((tmp_path/'out'/'summary.csv').open()))
    assert code == 3 and len(rows) == 3 and rows[2]['error']
    for row in rows[:2]: check_page(tmp_path/'out'/row['folder']/'report.html')
    assert len({r['folder'] for r in rows[:2]}) == 2

def test_every_study_of_a_folder(cli, model, clips, tmp_path):
    (tmp_path/'in').mkdir()
    for name in ('s0', 's1'): (tmp_path/'in'/name).symlink_to(clips/name)
    words = 'interpret', tmp_path/'in', '--model', model, '--out', tmp_path/'out'
    assert cli(*words)[0] == 0 and len(list((tmp_path/'out').glob('*/report.html'))) == 2
    (tmp_path/'in'/'cut.dcm').write_bytes(b'')
    code, out, err = cli(*words)
    rows = list(csv.DictReader((tmp_path/'out'/'summary.csv').open()))
    assert code == 3 and [bool(r['error']) for r in rows] == [False, False, True] and 'zero bytes' in err

def test_a_report_of_another_study_stays(cli, model, clips, tmp_path):
    def read(*words): return cli('interpret', *words, '--model', model, '--out', tmp_path/'out')
    assert [read(clips/'s0')[0] for _ in range(2)] == [0, 0]
    was = (tmp_path/'out'/'report.json').read_bytes()
    code, out, err = read(clips/'s1')
    assert (code, out, err.count('\n')) == (2, '', 1) and '--force' in err and (tmp_path/'out'/'report.json').read_bytes() == was
    assert read(clips/'s1', '--force')[0] == 0 and (tmp_path/'out'/'report.json').read_bytes() != was

def test_videos_that_only_a_folder_holds_together(cli, model, clips, tmp_path):
    _, _, err = cli('interpret', clips/'s0', '--model', model, '--out', tmp_path/'out')
    assert '2 videos without patient data: read as one study' in err
    _, out, _ = cli('deid', clips/'s0', tmp_path/'one')
    assert '2 videos without patient data' in out
    (tmp_path/'alone').mkdir(); shutil.copy(clips/'s0'/'plax.avi', tmp_path/'alone')
    assert 'without patient data' not in ''.join(cli('interpret', tmp_path/'alone', '--model', model, '--out', tmp_path/'two')[1:])
    assert 'without patient data' not in cli('deid', tmp_path/'alone', tmp_path/'three')[1]

def test_the_same_study_twice_keeps_both(cli, model, clips, tmp_path):
    assert cli('interpret', clips/'s0', clips/'s0', '--model', model, '--out', tmp_path/'out')[0] == 0
    assert len(list((tmp_path/'out').glob('*/report.html'))) == 2

def test_a_lost_clip_is_code_3(cli, model, clips, tmp_path):
    shutil.copytree(clips/'s0', tmp_path/'study'); whole = (clips/'s0'/'plax.avi').read_bytes()
    (tmp_path/'study'/'zero.mp4').write_bytes(b'')
    (tmp_path/'study'/'notes.dcm').write_text('hello')
    (tmp_path/'study'/'half.avi').write_bytes(whole[:200])
    code, out, _ = cli('interpret', tmp_path/'study', '--model', model, '--out', tmp_path/'out')
    record = json.loads((tmp_path/'out'/'report.json').read_text()); jsonschema.validate(record, SCHEMA)
    assert code == 3 and len(record['failures']) == 3 and len(record['views']) == 2
    assert 'zero.mp4' in out and 'zero.mp4' not in json.dumps(record)

@pytest.mark.parametrize('make', ['nothing', 'empty', 'text', 'loop'])
def test_nothing_usable_is_code_2_and_one_line(cli, model, tmp_path, make):
    folder = tmp_path/'in'
    if make != 'nothing': folder.mkdir()
    if make == 'text': (folder/'a.dcm').write_text('text')
    if make == 'loop': (folder/'again').symlink_to(folder)
    code, out, err = cli('interpret', folder, '--model', model, '--out', tmp_path/'out')
    assert (code, out, err.count('\n')) == (2, '', 1) and err.startswith('echo_lit: ') and not (tmp_path/'out').exists()

@pytest.mark.parametrize('words', [['--model', 'no-such-model'], ['--device', 'cuda:9'], ['--device', 'toaster'], ['--weights', '/nowhere']])
def test_wrong_use_is_code_2_and_one_line(cli, model, clips, tmp_path, words):
    if words[0] == '--device': words = ['--model', model, *words]
    code, out, err = cli('interpret', clips/'s0', '--out', tmp_path/'out', *words)
    assert code == 2 and err.count('\n') == 1, err

@pytest.mark.parametrize('words,says', [
    (['--model', 'panecho'], '--weights'), (['--model', 'panecho', '--weights', '/nowhere'], 'no folder'), (['--model', 'no-such-model'], 'no model'),
    (['--model', 'panecho', '--weights', '.'], 'holds no panecho.pt'), (['--model', 'phantom-tiny', '--prompts', '/nowhere'], 'no prompt file'),
    (['--model', 'phantom-tiny', '--device', 'toaster'], 'cannot run on toaster')])
def test_a_question_that_cannot_be_put_is_code_2_and_one_line(cli, clips, tmp_path, words, says):
    code, out, err = cli('predict', clips/'s0'/'a4c.avi', '--out', tmp_path/'a.csv', *words)
    assert (code, out, err.count('\n'), (tmp_path/'a.csv').exists()) == (2, '', 1, False) and says in err

def test_a_lost_clip_of_a_prediction_is_code_3(cli, clips, tmp_path):
    (tmp_path/'s').mkdir(); whole = (clips/'s0'/'a4c.avi').read_bytes()
    for name, data in (('a4c.avi', whole), ('=half.avi', whole[:200])): (tmp_path/'s'/name).write_bytes(data)
    (tmp_path/'asked.json').write_text(json.dumps({'=lead': dict(mode='binary', label_sources=['A pacemaker lead is seen.'])}))
    code, out, _ = cli('predict', tmp_path/'s', '--model', 'phantom-tiny', '--prompts', tmp_path/'asked.json', '--out', tmp_path/'a.csv')
    row, = csv.DictReader((tmp_path/'a.csv').open())
    assert code == 3 and '1 failed' in out and 'half.avi' not in (tmp_path/'a.csv').read_text() and row['question'][0] not in '=+-@'

def test_a_place_that_cannot_be_written(cli, model, clips, tmp_path):
    (tmp_path/'file').write_text('')
    code, _, err = cli('interpret', clips/'s0', '--model', model, '--out', tmp_path/'file'/'out')
    assert code == 2 and err.count('\n') == 1

def test_hostile_names(cli, model, clips, tmp_path):
    name = 'x\x1b]0;owned\x07<script>alert(1)<' + '\u202e.avi'
    (tmp_path/'=cmd\x1b[2J').mkdir()
    study = tmp_path/'=cmd\x1b[2J'
    shutil.copy(clips/'s0'/'a4c.avi', study/name)
    (study/'<img src=x onerror=alert(1)>.mp4').write_bytes(b'not a video')
    code, out, err = cli('interpret', study, '--model', model, '--out', tmp_path/'out')
    assert code == 3 and '\x1b' not in out + err
    page = check_page(tmp_path/'out'/'report.html')
    assert 'owned' not in page.words and 'onerror' not in page.words

@pytest.mark.parametrize('evil', ['=1+1', '+1', '-1', '@SUM(A1)', '\t=1', '|calc'])
def test_no_formula_in_a_table(evil):
    cell = list(csv.reader(csv_text([{'a': evil}]).splitlines()))[1][0]
    assert cell[0] not in '=+-@|\t'

@pytest.mark.parametrize('command', [[], ['interpret'], ['predict'], ['phantom'], ['train'], ['evaluate'], ['models']])
def test_help(cli, command):
    code, out, _ = cli(*command, '--help')
    assert code == 0 and 'usage: echo_lit' in out

@pytest.mark.parametrize('format,suffix', [('dicom', '.dcm'), ('avi', '.avi'), ('mp4', '.mp4')])
def test_phantom_writes_studies(cli, tmp_path, format, suffix, monkeypatch):
    import echo_lit.data.phantom as phantom
    monkeypatch.setattr(phantom, 'phantom_study', lambda seed, **k: phantom_small(phantom, seed))
    code, out, _ = cli('phantom', tmp_path/'out', '--studies', 1, '--seed', 5, '--format', format)
    assert code == 0 and len(list(Path(out.strip()).glob(f'*{suffix}'))) == 1

def phantom_small(phantom, seed):
    from echo_lit.core import Study
    heart = phantom.random_heart(seed)
    clip = phantom.phantom_clip(heart, 'a4c', seed, .2, 25., 144)
    found = phantom.depicted(heart, ['a4c'])
    return phantom.PhantomStudy(Study(clip.id, clip.id, [clip]), heart, ['a4c'], found, phantom.write_report(found, seed))

def test_the_installed_command(tmp_path):
    words = [sys.executable, '-c', 'from echo_lit.cli import main; main()', 'interpret', str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count('\n') == 1
