"Miniatures of EchoNet's layouts with every fault that a copy was seen with."
import numpy as np
import pytest

from echo_lit.core import EchoError
from echo_lit.data.datasets import Listed, list_datasets, open_dataset
from echo_lit.data.echonet import EchoNetDynamic, EchoNetLVH, EchoNetPediatric
from echo_lit.data.manifest import counts, usable

HEAD = 'FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split\n'

def ellipse(cx, cy, a, b, n=20):
    y = (np.arange(n) + .5)/n*2 - 1
    h = a*np.sqrt(1 - y**2)
    return np.array([[cx, cy - b, cx, cy + b], *np.c_[cx - h, cy + b*y, cx + h, cy + b*y]])

def dynamic(root, n=40, suffix='never', bom=False, upper=True, end='\n'):
    "Labels that follow from the name, in an order that is not the name's."
    (root/'Videos').mkdir(parents=True)
    order = np.random.default_rng(1).permutation(n)
    tail = {'never': lambda i: '', 'always': lambda i: '.avi', 'sometimes': lambda i: '.avi' if i % 3 == 0 else ''}[suffix]
    part = lambda i: ('TRAIN', 'VAL', 'TEST')[i % 3] if upper else ('train', 'Val', 'test')[i % 3]
    lines = [f'0X{i:04X}{tail(i)},{20 + i},40,100,112,112,50,60,{part(i)}' for i in order]
    (root/'FileList.csv').write_bytes((HEAD + '\n'.join(lines) + '\n').replace('\n', end).encode('utf-8-sig' if bom else 'utf-8'))
    drawn = ['FileName,X1,Y1,X2,Y2,Frame']
    for i in range(n):
        small, large = (40, 9) if i % 2 else (9, 40)
        for frame, p in ((small, ellipse(56, 50, 12, 24)), (large, ellipse(56, 50, 17, 30))):
            drawn += [','.join(map(str, [f'0X{i:04X}.avi', *row, frame])) for row in p]
        (root/'Videos'/f'0X{i:04X}.avi').touch()
    (root/'VolumeTracings.csv').write_text('\n'.join(drawn) + '\n')
    return root

@pytest.mark.parametrize('end', ['\n', '\r\n'])
@pytest.mark.parametrize('upper', [True, False])
@pytest.mark.parametrize('bom', [False, True])
@pytest.mark.parametrize('suffix', ['never', 'always', 'sometimes'])
def test_no_label_ever_moves_to_another_recording(tmp_path, suffix, bom, upper, end):
    echo = EchoNetDynamic(dynamic(tmp_path/'e', suffix=suffix, bom=bom, upper=upper, end=end), quiet=True)
    t = usable(echo.table)
    number = t.path.str[9:-4].map(lambda x: int(x, 16))
    assert len(t) == 40 and (t.ef == 20 + number).all()
    assert (t.split == number.map(lambda i: ('train', 'val', 'test')[i % 3])).all() and set(t.split_source) == {'official'}
    for clip, i in zip(t.clip_id[:6], number[:6]):
        assert [(x.phase, x.frame) for x in echo.tracings(clip)] == [('ES', 40 if i % 2 else 9), ('ED', 9 if i % 2 else 40)]

def test_ids_do_not_depend_on_the_place_or_on_the_suffix(tmp_path):
    a, b = (EchoNetDynamic(dynamic(tmp_path/s, suffix=s), quiet=True).table for s in ('never', 'always'))
    assert a.clip_id.tolist() == b.clip_id.tolist() and a.clip_id.is_unique

def test_what_is_missing_is_counted(tmp_path, capsys):
    root = dynamic(tmp_path/'e', 10)
    (root/'Videos'/'0X0003.avi').unlink()
    (root/'Videos'/'0XFFFF.avi').touch()
    lines = (root/'VolumeTracings.csv').read_text().splitlines()
    (root/'VolumeTracings.csv').write_text('\n'.join(x for x in lines if not x.startswith('0X0005') and not (x.startswith('0X0004') and x.endswith(',9'))))
    for _ in range(2): open_dataset('echonet-dynamic', root)
    out = capsys.readouterr().out
    assert out.count('no redistribution') <= 1
    assert out.count('11 listed, 7 usable, 4 excluded: 2 fewer than 2 traced frames, 1 missing file, 1 not in the list') == 2

def test_a_recording_listed_twice_is_refused(tmp_path):
    root = dynamic(tmp_path/'e', 4)
    with open(root/'FileList.csv', 'a') as f: f.write('0X0001.avi,99,1,2,112,112,50,60,TEST\n')
    with pytest.raises(EchoError, match='stands in 2 usable rows'): EchoNetDynamic(root, quiet=True)

@pytest.mark.parametrize('gone', ['FileList.csv', 'VolumeTracings.csv'])
def test_another_folder_is_not_the_set(tmp_path, gone):
    root = dynamic(tmp_path/'e', 2)
    (root/gone).unlink()
    with pytest.raises(EchoError, match=f'e is not echonet-dynamic: {gone} is not there'): EchoNetDynamic(root)

def test_a_list_without_its_columns_says_which(tmp_path):
    root = dynamic(tmp_path/'e', 2)
    (root/'FileList.csv').write_text('Name;EF\na;3\n')
    with pytest.raises(EchoError, match="FileList.csv: no column 'FileName', there are Name;EF"): EchoNetDynamic(root)
    (root/'FileList.csv').write_bytes(b'')
    with pytest.raises(EchoError, match='not a readable CSV'): EchoNetDynamic(root)
    (root/'FileList.csv').write_bytes(b'\xff\xfe\x00\x01FileName')
    with pytest.raises(EchoError, match='not a readable CSV'): EchoNetDynamic(root)

def pediatric(root, rows, drawn=''):
    (root/'A4C'/'Videos').mkdir(parents=True)
    (root/'A4C'/'FileList.csv').write_text('FileName,EF,Sex,Age,Weight,Height,Split\n' + ''.join(r + '\n' for r in rows))
    if drawn: (root/'A4C'/'VolumeTracings.csv').write_text('FileName,X,Y,Frame\n' + drawn)
    for r in rows: (root/'A4C'/'Videos'/r.split(',')[0]).touch()
    return root

@pytest.mark.parametrize('split, parts', [('synthetic', 'train train val test'), ('fold-0', 'test train train train'), ('fold-7', 'train test val train'),
    ('fold-9', 'val train train test')])
def test_folds_become_parts(tmp_path, split, parts):
    rows = [f'CR{i}-CS{i}-{i:06}.avi,60,M,3,14,90,{fold}' for i, fold in enumerate((0, 7, 8, 9))]
    assert EchoNetPediatric(pediatric(tmp_path/'p', rows), split, quiet=True).table.split.tolist() == parts.split()

def test_holes_in_the_paediatric_tables(tmp_path):
    rows = ['CR1-CS1-000001.avi,,,,,,3', 'CR1-CS2-000002.avi,61.5,F,0,3.1,50,', 'odd.avi,50,F,1,9,70,4']
    drawn = 'CR1-CS1-000001.avi,1,1,5\nCR1-CS1-000001.avi,9,1,5\nCR1-CS1-000001.avi,9,9,5\nCR1-CS1-000001.avi,,,No Diastolic\n'
    kids = EchoNetPediatric(pediatric(tmp_path/'p', rows, drawn), quiet=True)
    t = kids.table
    assert t.ef.isna().tolist() == [True, False, False] and t.age_years[1] == 0
    assert t.split.isna().tolist() == [False, True, False] and t.patient_id.tolist()[:2] == ['CR1', 'CR1'] and t.patient_id.isna()[2]
    (one,) = kids.tracings(t.clip_id[0])
    assert (one.frame, one.phase, one.area) == (5, None, 32) and kids.tracings(t.clip_id[1]) == []

def lvh(root, rows):
    (root/'Batch2').mkdir(parents=True)
    head = 'HashedFileName,Calc,CalcValue,Frame,X1,X2,Y1,Y2,Frames,FPS,Width,Height,split'
    (root/'MeasurementsList.csv').write_text('\n'.join([head, *rows]) + '\n')
    for r in rows: (root/'Batch2'/(r.split(',')[0] + '.avi')).touch()
    return root

def test_faults_of_the_caliper_table(tmp_path):
    wall = EchoNetLVH(lvh(tmp_path/'l', ['0XA,LVIDd,4.8,3,10,10,0,96,60,50,640,480,train', '0XA,IVSd,1.0,3,10,10,0,20,60,50,640,480,val',
        '0XB,LVIDd,4.6,3,10,10,0,92,60,50,640,480,test', '0XB,LVIDd,5.0,40,10,10,0,100,60,50,640,480,test', '0XC,LVIDs,3.0,,,,,,60,50,640,480,test',
        '0XD,LVIDd,4.8,3,7,7,9,9,60,50,640,480,train']), quiet=True)
    t = wall.table.set_index(wall.table.path.str[-7:-4])
    assert counts(wall.table) == '4 listed, 3 usable, 1 excluded: 1 in two splits' and t.path['0XB'] == 'Batch2/0XB.avi'
    assert t.lvidd['0XB'] == 4.8 and t.cm_per_px['0XB'] == pytest.approx(.05) and t.lvids['0XC'] == 3
    assert np.isnan(t.cm_per_px['0XC']) and np.isnan(t.cm_per_px['0XD']) and wall.tracings(t.clip_id['0XC']) == []

@pytest.mark.parametrize('text, parts', [('HashedFileName,split\n0XA,train\n0XB,test\n', ['train', 'test']), ('0XC,x\n,\n', None),
    (',hash,part\n0,0XB.avi,VALIDATION\n1,0XA.avi,TEST\n', ['test', 'val']), ('hash\n0XA\n', None)])
def test_the_old_split_is_told_by_its_content(tmp_path, text, parts):
    root = lvh(tmp_path/'l', [f'0X{k},LVIDd,4.8,3,10,10,0,96,60,50,640,480,train' for k in 'AB'])
    (root/'hashed_index_old_split.csv').write_text(text)
    if parts: assert EchoNetLVH(root, 'paper_old', quiet=True).table.split.tolist() == parts
    else:
        with pytest.raises(EchoError, match='no column with recordings'): EchoNetLVH(root, 'paper_old', quiet=True)

def test_a_list_of_ones_own(tmp_path):
    (tmp_path/'a.avi').touch()
    (tmp_path/'t.csv').write_text('p,who,EF,MR,s\na,007,0X1F,2-3,train\nb,007,,1,test\n')
    t = Listed(tmp_path, tmp_path/'t.csv', {'path': 'p', 'patient_id': 'who', 'ef': 'EF', 'mr': 'MR', 'split': 's'}, suffix='.avi', quiet=True).table
    assert t.patient_id.tolist() == ['007']*2 and t.mr.tolist() == ['2-3', '1'] and t.excluded.tolist() == [False, True]
    assert t.split_source.tolist() == ['csv']*2

def test_every_set_says_how_its_layout_is_known():
    t = list_datasets()
    assert {'echonet-dynamic', 'echonet-lvh', 'echonet-pediatric', 'folder', 'csv'} <= set(t.name) and t.terms.str.len().gt(3).all()
