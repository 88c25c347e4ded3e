"VideoMAE and DINOv2 as transformers and timm save them, and give them out."
import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from echo_lit.data.contract import InputContract
from echo_lit.models.hub import load_model
from echo_lit.models.videomae import vit_names
from echo_lit.models.weights import WeightsError

TINY = dict(image_size=32, patch_size=16, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
            decoder_hidden_size=12, decoder_num_attention_heads=2, decoder_num_hidden_layers=1, decoder_intermediate_size=24)
FRAMES = dict(image_size=42, patch_size=14, hidden_size=24, num_hidden_layers=2, num_attention_heads=3)
CLIPS = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def shaken(model):
    "Random weights in every tensor, so that no bias or gain hides a mistake."
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters(): p.add_(.2*torch.randn(p.shape, generator=g))
    return model.eval().requires_grad_(False)


def close(a, b): torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def saved(model, folder, newer):
    "Download folder; with `newer`, under the names that transformers 5 has in memory."
    model.save_pretrained(folder)
    if newer: save_file({k: t.contiguous() for k, t in model.state_dict().items()}, folder/'model.safetensors')
    return folder


@pytest.fixture(scope='module')
def transformers(): return pytest.importorskip('transformers')


@pytest.mark.parametrize('newer', [False, True])
@pytest.mark.parametrize('name', ['VideoMAEModel', 'VideoMAEForPreTraining'])
def test_videomae(transformers, tmp_path, name, newer):
    model = shaken(getattr(transformers, name)(transformers.VideoMAEConfig(**TINY, use_mean_pooling=False)))
    video = load_model('videomae', saved(model, tmp_path, newer)).video
    x = video.contract.normalise(CLIPS)
    theirs = (model if name == 'VideoMAEModel' else model.videomae)(x.transpose(1, 2)).last_hidden_state
    close(video.vit(x), theirs)
    close(video(CLIPS), theirs.mean(1))
    close(video.places(CLIPS).flatten(1, 3), theirs)


def test_videomae_masked(transformers, tmp_path):
    model = shaken(transformers.VideoMAEModel(transformers.VideoMAEConfig(**TINY, use_mean_pooling=False)))
    video = load_model('videomae', saved(model, tmp_path, False)).video
    x, hidden = video.contract.normalise(CLIPS), torch.tensor([[1, 0, 1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 1, 0, 1, 0]]).bool()
    visible = (~hidden).nonzero()[:, 1].view(2, -1)
    close(video.vit(x, visible), model(x.transpose(1, 2), bool_masked_pos=hidden).last_hidden_state)


@pytest.mark.parametrize('newer', [False, True])
def test_videomae_fine_tuned(transformers, tmp_path, newer):
    model = shaken(transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**TINY, use_mean_pooling=True)))
    video = load_model('videomae', saved(model, tmp_path, newer)).video
    close(model.classifier(video(CLIPS)), model(video.contract.normalise(CLIPS).transpose(1, 2)).logits)


def test_videomae_without_a_last_norm(transformers, tmp_path):
    model = shaken(transformers.VideoMAEModel(transformers.VideoMAEConfig(**TINY, use_mean_pooling=True)))
    video = load_model('videomae', saved(model, tmp_path, False)).video
    close(video(CLIPS), model(video.contract.normalise(CLIPS).transpose(1, 2)).last_hidden_state.mean(1))


def test_the_grid_is_that_of_the_folder(transformers, tmp_path):
    model = shaken(transformers.VideoMAEModel(transformers.VideoMAEConfig(**TINY, use_mean_pooling=False)))
    video = load_model('videomae', saved(model, tmp_path, False)).video
    assert (video.vit.grid, video.contract.frames, video.contract.size) == ((2, 2, 2), 4, 32)
    (tmp_path/'config.json').write_text(json.dumps(TINY | dict(num_frames=16, image_size=16)))
    other = load_model('videomae', tmp_path).video
    assert other.vit.grid == (8, 1, 1) and other.vit.pos_embed.shape == video.vit.pos_embed.shape
    assert (other(CLIPS) - video(CLIPS)).abs().max() > 1e-3


@pytest.mark.parametrize('config', ['{', '{"num_frames": 16, "image_size": 999999, "num_attention_heads": 3}'])
def test_a_config_that_cannot_be(transformers, tmp_path, config):
    model = transformers.VideoMAEModel(transformers.VideoMAEConfig(**TINY, use_mean_pooling=False))
    saved(model, tmp_path, False)
    (tmp_path/'config.json').write_text(config)
    with pytest.raises(WeightsError): load_model('videomae', tmp_path)
    (tmp_path/'config.json').write_text('[1]')
    assert load_model('videomae', tmp_path, heads=3).config['grid'] == [8, 14, 14]


@pytest.mark.parametrize('newer', [False, True])
@pytest.mark.parametrize('kind,more', [('Dinov2', {}), ('Dinov2', dict(use_swiglu_ffn=True)), ('Dinov2WithRegisters', {})])
@pytest.mark.parametrize('size', [42, 28, 70])
def test_dinov2_of_transformers(transformers, tmp_path, kind, more, newer, size):
    model = shaken(getattr(transformers, f'{kind}Model')(getattr(transformers, f'{kind}Config')(**FRAMES, **more)))
    video = load_model('dinov2', saved(model, tmp_path, newer), contract=InputContract(frames=3, size=size)).video
    clips = torch.randint(0, 256, (2, 3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    x = video.contract.normalise(clips).transpose(1, 2).flatten(0, 1)
    theirs = model(x).last_hidden_state
    close(video.vit(x[:, :, None]), theirs)
    close(video(clips), theirs[:, 0].unflatten(0, (2, 3)).mean(1))


@pytest.mark.parametrize('name', ['vit_small_patch14_dinov2', 'vit_small_patch14_reg4_dinov2', 'vit_giant_patch14_dinov2'])
@pytest.mark.parametrize('size', [42, 28, 70])
def test_dinov2_of_timm(tmp_path, name, size):
    timm = pytest.importorskip('timm')
    def born(size): return timm.create_model(name, depth=2, embed_dim=24, num_heads=3, img_size=size, dynamic_img_size=True)
    model = shaken(born(42))
    save_file(model.state_dict(), tmp_path/'model.safetensors')
    (tmp_path/'config.json').write_text(json.dumps(dict(architecture=name, num_features=24)))
    video = load_model('dinov2', tmp_path, heads=3, contract=InputContract(frames=1, size=size)).video
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    close(video.vit(x[:, :, None]), model.forward_features(x))


def test_a_checkpoint_in_half_precision_and_one_of_several_processes(tmp_path):
    from echo_lit.models.vit import ViTTower
    contract = InputContract(frames=4, seconds=None, stride=4, size=32)
    tower = shaken(ViTTower(contract, pool='mean', width=24, depth=1, heads=3))
    state = {f'module.encoder.{k}': t.half() for k, t in tower.vit.state_dict().items()}
    torch.save(dict(model=state, args=argparse.Namespace(num_frames=4, input_size=32)), tmp_path/'checkpoint.pth')
    video = load_model('sigma', tmp_path, heads=3).video
    assert video.vit.patch_embed.proj.weight.dtype == torch.float32
    torch.testing.assert_close(video.vit(contract.normalise(CLIPS)), tower.vit(contract.normalise(CLIPS)), atol=1e-2, rtol=0)


@pytest.mark.parametrize('change,message', [
    (lambda s: s.pop('encoder.norm.weight'), '1 unexpected .vit.norm.bias'),
    (lambda s: s.update({'encoder.blocks.0.mlp.fc2.bias': torch.zeros(23)}), '1 misshapen'),
    (lambda s: s.pop('encoder.blocks.0.attn.proj.bias'), '1 missing'),
    (lambda s: s.pop('encoder.blocks.0.mlp.fc1.weight'), 'no vision transformer'),
    (lambda s: s.pop('encoder.patch_embed.proj.weight'), 'no vision transformer'),
    (lambda s: s.update({'encoder.blocks.3.norm1.bias': torch.zeros(24)}), 'missing'),
    (lambda s: s.update({f'encoder.blocks.{i}.norm1.bias': torch.zeros(1) for i in range(5000)}), 'most are empty'),
    (lambda s: s.update({'unheard.of': torch.zeros(1)}), 'unknown .unheard.of')])
def test_what_does_not_fit_is_named(tmp_path, change, message):
    from echo_lit.models.vit import ViT
    state = {f'encoder.{k}': t for k, t in ViT(width=24, depth=2, heads=3, cls=False, grid=(2, 2, 2)).state_dict().items()}
    change(state)
    torch.save(dict(model=state), tmp_path/'checkpoint.pth')
    with pytest.raises(WeightsError, match=message): load_model('videomae', tmp_path, heads=3, frames=4, size=32)


def test_two_checkpoints_in_a_folder_are_a_question(tmp_path):
    for n in (1, 2): torch.save({}, tmp_path/f'checkpoint-{n}.pth')
    with pytest.raises(WeightsError, match='2 weight files'): load_model('discovr', tmp_path)


def test_names_of_ours_stay():
    from echo_lit.models.vit import ViT
    state = ViT(width=24, depth=2, heads=3, grid=(2, 2, 2), registers=2, learned=True, scaled=True, gated=True).state_dict()
    assert vit_names(state).keys() == state.keys()


ENCODER = dict(width=24, depth=1, heads=3)


@pytest.mark.parametrize('name', ['videomae', 'sigma', 'discovr', 'dinov2', 'dino-echo'])
@pytest.mark.parametrize('content', [torch.ones(3), 7, [], {}, {0: torch.ones(2)}, {'model': 7, 'teacher': 7}, 'text'], ids=lambda c: type(c).__name__)
def test_a_file_without_weights_is_one_line(tmp_path, name, content):
    torch.save(content, tmp_path/'a.pth')
    with pytest.raises(WeightsError, match='a.pth holds no weights'): load_model(name, tmp_path/'a.pth')


@pytest.mark.parametrize('name', ['videomae', 'discovr', 'dinov2'])
@pytest.mark.parametrize('key,shape', [
    ('pos_embed', (19,)), ('pos_embed', (19, 24)), ('pos_embed', (1, 19, 23)), ('pos_embed', (1, 0, 24)), ('pos_embed', ()), ('pos_embed', (2, 19, 24)),
    ('cls_token', (24,)), ('cls_token', (1, 1, 12)), ('cls_token', ()), ('reg_token', (4,)), ('patch_embed.proj.weight', (24, 3)),
    ('patch_embed.proj.weight', (24, 3, 0, 0, 0)), ('patch_embed.proj.weight', (0, 3, 2, 16, 16)), ('blocks.0.mlp.fc2.weight', (24,)),
    ('blocks.0.mlp.fc1.weight', ()), ('blocks.0.attn.qkv.weight', (72,)), ('blocks.0.attn.key.weight', (24, 24)), ('blocks.0.attn.query.bias', ()),
    ('norm.weight', (2, 24))])
def test_a_tensor_of_another_shape_is_one_line(tmp_path, name, key, shape):
    from echo_lit.models.vit import ViT, sine_table
    image = name == 'dinov2'
    state = ViT(**ENCODER, grid=(1, 3, 3) if image else (2, 3, 3), tubelet=1 if image else 2, learned=image, cls=name != 'videomae').state_dict()
    if name == 'discovr': state['pos_embed'] = torch.cat([torch.zeros(1, 24), sine_table(18, 24)])[None]
    options = dict(heads=3) if image else dict(heads=3, frames=4, size=48)
    torch.save(state, tmp_path/'a.pth')
    load_model(name, tmp_path/'a.pth', **options)
    torch.save(state | {key: torch.ones(shape)}, tmp_path/'a.pth')
    with pytest.raises(WeightsError) as e: load_model(name, tmp_path/'a.pth', **options)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('columns', [(24, 24, 12), (24, 12, 12), (12, 24, 24)])
def test_queries_keys_and_values_of_different_widths(tmp_path, columns):
    from echo_lit.models.vit import ViT
    state = ViT(**ENCODER, grid=(2, 3, 3), cls=False, qkv_bias=False).state_dict()
    del state['blocks.0.attn.qkv.weight']
    state |= {f'blocks.0.attn.{n}.weight': torch.ones(24, c) for n, c in zip(('query', 'key', 'value'), columns)}
    torch.save(state, tmp_path/'a.pth')
    with pytest.raises(WeightsError, match='unequal parts'): load_model('videomae', tmp_path/'a.pth', heads=3, frames=4, size=48)
