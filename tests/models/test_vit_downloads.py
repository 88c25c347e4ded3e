"Downloads as users have them, complete in file names, tensor names and shapes, with weights by formula: from the file to a vector."
import argparse
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from echo_lit.models.hub import load_model
from echo_lit.models.vit import sine_table
from echo_lit.models.weights import WeightsError, read_weights

KEYS = json.loads((Path(__file__).parents[1]/'parity'/'golden'/'discovr'/'checkpoint_keys_paper_config.json').read_text())


class Formula:
    "Tensors cut from one sine; those of a file share its storage, so that a gigabyte of weights is a file of a few megabytes."
    def __init__(self, largest):
        self.wave = torch.sin(.37*((7919*torch.arange(largest + 10007)) % 10007))
        self.small, self.gain = .03*self.wave, 1 + .1*self.wave

    def __call__(self, i, name, shape):
        if name.endswith('num_batches_tracked'): return torch.tensor(1)
        if name.endswith('pos_embed'): return torch.cat([torch.zeros(1, shape[2]), sine_table(shape[1] - 1, shape[2])])[None]
        gain = len(shape) == 1 and name.endswith(('weight', 'running_var', 'gamma', 'lambda1'))
        return (self.gain if gain else self.small)[(104729*i) % 10007:][:math.prod(shape)].view(shape)

    def fill(self, shapes): return {k: self(i, k, tuple(s)) for i, (k, s) in enumerate(shapes.items())}


def formula(shapes): return Formula(max(math.prod(s) for s in shapes.values())).fill(shapes)


def shapes_of(build):
    "Names and shapes of a module that is never filled."
    with torch.device('meta'): return {k: tuple(t.shape) for k, t in build().state_dict().items()}


def fake_discovr(folder, biases=True):
    "`checkpoint-799.pth` with 693 tensors, or the 637 that are left without biases of query and value."
    shapes = {k: s for k, s in KEYS.items() if biases or not k.endswith(('q_bias', 'v_bias'))}
    args = argparse.Namespace(input_size=112, num_frames=64, model='pretrain_videomae_base_patch16_224', batch_size=16, lr=1.5e-4)
    state = dict(model=formula(shapes), optimizer={'state': {}, 'param_groups': [{'lr': 1e-4}]}, epoch=799, scaler={'scale': 65536.}, args=args)
    torch.save(state, folder/'checkpoint-799.pth')
    return shapes


def fake_pretraining(folder, sigma=False):
    "VideoMAE's or SIGMA's `checkpoint.pth`: no class token, no positions."
    parts = ('encoder.', 'decoder.', 'encoder_to_decoder.', 'mask_token')
    shapes = {k: s for k, s in KEYS.items() if k.startswith(parts) and not k.endswith(('cls_token', 'pos_embed'))}
    if sigma: shapes |= {'prototypes': (3000, 256), 'head.mlp.0.weight': (1024, 1536), 'head.mlp.0.bias': (1024,)}
    torch.save(dict(model=formula(shapes), epoch=799), folder/'checkpoint.pth')


def fake_videomae(folder, transformers):
    "Hugging Face folder of MCG-NJU/videomae-base."
    config = transformers.VideoMAEConfig(use_mean_pooling=False)
    shapes = shapes_of(lambda: transformers.VideoMAEForPreTraining(config))
    state = formula({k: s for k, s in shapes.items() if not k.endswith('position_embeddings')})
    names = {'attention.query.bias': 'attention.q_bias', 'attention.value.bias': 'attention.v_bias'}
    save_file({next((k.replace(a, b) for a, b in names.items() if k.endswith(a)), k): t.clone() for k, t in state.items()}, folder/'model.safetensors')
    config.save_pretrained(folder)
    (folder/'preprocessor_config.json').write_text(json.dumps(dict(size=dict(shortest_edge=224), do_normalize=True)))
    return config


def dino_shapes(timm, name): return shapes_of(lambda: timm.create_model(name))


def fake_meta(folder, timm, name='vit_small_patch14_reg4_dinov2'):
    "Meta's `dinov2_…_pretrain.pth`: registers by another name, the class token's position in the table, a mask token."
    shapes = dino_shapes(timm, name)
    width = shapes['norm.weight'][0]
    state = formula({k.replace('reg_token', 'register_tokens'): s for k, s in shapes.items() if k != 'pos_embed'})
    state |= dict(pos_embed=.02*sine_table(1370, width)[None], mask_token=torch.zeros(1, width))
    torch.save(state, folder/'dinov2_vits14_reg4_pretrain.pth')
    return state


def fake_dino_echo(folder, timm):
    "DINO-ECHO's report encoder: 344 tensors under `vit.`, and a projection."
    state = fake_meta(folder, timm, 'vit_large_patch14_reg4_dinov2')
    (folder/'dinov2_vits14_reg4_pretrain.pth').unlink()
    table = .02*sine_table(257, 1024)[None]
    proj = formula({'proj.0.weight': (1024, 1024), 'proj.2.weight': (1024,), 'proj.2.bias': (1024,), 'proj.3.weight': (1024, 1024)})
    torch.save({f'vit.{k}': t for k, t in (state | dict(pos_embed=table)).items()} | proj, folder/'dino_echo.pth')
    return len(state)


def fake_echonet(folder):
    "Both files of release v1.0.0."
    from torchvision.models.segmentation import deeplabv3_resnet50
    from torchvision.models.video import r2plus1d_18
    nets = {'r2plus1d_18_32_2_pretrained.pt': lambda: r2plus1d_18(num_classes=1), 'deeplabv3_resnet50_random.pt':
            lambda: deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=1, aux_loss=False)}
    for name, build in nets.items():
        torch.save({'epoch': 44, 'state_dict': formula({f'module.{k}': s for k, s in shapes_of(build).items()}), 'best_loss': 1.}, folder/name)
    return nets


def clips(*shape): return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize('biases', [True, False])
def test_discovr(tmp_path, biases):
    timm = pytest.importorskip('timm')
    shapes = fake_discovr(tmp_path, biases)
    assert len(shapes) == (693 if biases else 637)
    video, x = load_model('discovr', tmp_path).video, clips(1, 3, 64, 112, 112)
    assert (video.vit.grid, video.embed_dim, video.vit.blocks[0].attn.qkv.bias is not None) == ((32, 7, 7), 768, biases)
    with torch.inference_mode(): ours = video.vit(video.normalise(x))
    state = read_weights(tmp_path/'checkpoint-799.pth', 'model', allow=[argparse.Namespace])
    state = {k.removeprefix('video_teacher.'): t for k, t in state.items() if k.startswith('video_teacher.')}
    tall = timm.models.VisionTransformer(img_size=(32*112, 112), in_chans=6, num_classes=0, global_pool='token', qkv_bias=biases)
    for k in [k for k in state if k.endswith('q_bias')]:
        q, v = state.pop(k), state.pop(k.replace('q_bias', 'v_bias'))
        state[k.replace('q_bias', 'qkv.bias')] = torch.cat([q, torch.zeros_like(q), v])
    state['patch_embed.proj.weight'] = state['patch_embed.proj.weight'].flatten(1, 2)
    tall.load_state_dict(state)
    image = video.normalise(x).unflatten(2, (32, 2)).permute(0, 1, 3, 2, 4, 5).reshape(1, 6, 32*112, 112)
    with torch.inference_mode(): theirs = tall.eval().forward_features(image)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_videomae(tmp_path):
    transformers = pytest.importorskip('transformers')
    config = fake_videomae(tmp_path, transformers)
    video, x = load_model('videomae', tmp_path).video, clips(1, 3, 16, 224, 224)
    model = transformers.VideoMAEModel(config).eval()
    own = {k.removeprefix('videomae.'): t for k, t in formula(
        {k: s for k, s in shapes_of(lambda: transformers.VideoMAEForPreTraining(config)).items()}).items() if k.startswith('videomae.')}
    model.load_state_dict(own)
    with torch.inference_mode():
        theirs = model(video.contract.normalise(x).transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(video(x), theirs.mean(1), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['videomae', 'sigma'])
def test_pretraining_checkpoints(tmp_path, name):
    fake_pretraining(tmp_path, name == 'sigma')
    bundle = load_model(name, tmp_path)
    assert (bundle.video.vit.grid, bundle.contract.frames, bundle.contract.size) == ((8, 14, 14), 16, 224)
    with pytest.raises(WeightsError, match='no table of positions|holds no teacher'): load_model('discovr', tmp_path)


@pytest.mark.slow
def test_dinov2(tmp_path):
    timm = pytest.importorskip('timm')
    state = fake_meta(tmp_path, timm)
    video, x = load_model('dinov2', tmp_path).video, clips(1, 3, 2, 224, 224)
    model = timm.create_model('vit_small_patch14_reg4_dinov2', img_size=518, dynamic_img_size=True).eval()
    placed = {k.replace('register_tokens', 'reg_token'): t for k, t in state.items() if k != 'mask_token'}
    placed |= dict(cls_token=state['cls_token'] + state['pos_embed'][:, :1], pos_embed=state['pos_embed'][:, 1:])
    model.load_state_dict(placed)
    frames = video.contract.normalise(x).transpose(1, 2).flatten(0, 1)
    with torch.inference_mode():
        torch.testing.assert_close(video.frame_vectors(x)[0], model.forward_features(frames)[:, 0], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_dino_echo(tmp_path):
    assert fake_dino_echo(tmp_path, pytest.importorskip('timm')) == 344
    video = load_model('dino-echo', tmp_path).video
    assert (video.embed_dim, video.vit.grid, len(video.vit.blocks), video.contract.size) == (1024, (1, 16, 16), 24, 224)
    with torch.inference_mode(): assert video(clips(1, 3, 1, 224, 224)).isfinite().all()


@pytest.mark.slow
def test_echonet(tmp_path):
    nets = fake_echonet(tmp_path)
    ef, segmenter, x = load_model('echonet-ef', tmp_path).video, load_model('echonet-segmentation', tmp_path), clips(1, 3, 32, 112, 112)
    for file, ours in zip(nets, (lambda: ef.ejection_fraction(x), lambda: segmenter(x[:, :, 0]))):
        with torch.device('meta'): net = nets[file]().eval()
        state = torch.load(tmp_path/file)['state_dict']
        net.load_state_dict({k.removeprefix('module.'): t for k, t in state.items()}, assign=True)
        with torch.inference_mode():
            theirs = net((x.float() - 33)/50)[:, 0] if 'r2plus1d' in file else net((x[:, :, 0].float() - 33)/50)['out'][:, 0]
            torch.testing.assert_close(ours(), theirs, atol=1e-4, rtol=1e-5)
