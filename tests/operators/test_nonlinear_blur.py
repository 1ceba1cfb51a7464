"""The learned blur: layout of the published weights, loader, refusals. The camera's: inverse, limits, gradients."""

import pickle

import pytest
import torch
import torch.nn.functional as F

from invsolve.operators import Blur, CameraBlur, NonlinearBlur
from invsolve.operators.nonlinear_blur import BlurNetwork


def published_shapes():
    """Names and shapes in GOPRO_wVAE.pth, without its kernel_extractor; written down from the public project."""
    shapes = {}

    def layer(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = (shape[0],)

    for index, channels in ((0, 3), (2, 64), (4, 64)):
        layer(f"feature_extractor.{index}", 64, channels, 3, 3)
    for trunk, first, count in (("feature_extractor", 6, 10), ("recon_trunk", 0, 20)):
        for index in range(first, first + count):
            layer(f"{trunk}.{index}.conv1", 64, 64, 3, 3)
            layer(f"{trunk}.{index}.conv2", 64, 64, 3, 3)
    layer("recon_trunk.20", 256, 64, 3, 3)
    layer("recon_trunk.23", 256, 64, 3, 3)
    layer("recon_trunk.26", 64, 64, 3, 3)
    layer("recon_trunk.28", 3, 64, 3, 3)
    level = "adapter.model."
    for index, (outer, inner) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512), (512, 512))):
        layer(f"{level}down.{int(index > 0)}", inner, outer, 4, 4, bias=False)
        layer(f"{level}up.1", 2 * inner, outer, 4, 4, bias=False)
        level += "submodule."
    shapes["adapter.model.up.1.bias"] = (64,)
    return shapes


def small_state(scale=0.2, seed=0):
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in BlurNetwork(2, 2, 1, 3).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "weights.pth"
    extra = {"kernel_extractor.model.1.weight": torch.zeros(2, 4, 7, 7)}  # the published file holds more than we need
    torch.save(small_state() | extra, path)
    return path


def test_the_published_layout():
    with torch.device("meta"):
        network = BlurNetwork()
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == published_shapes()


def test_network_by_hand(checkpoint):
    """The same map written down with bare convolutions."""
    state, x = small_state(), torch.rand(2, 3, 128, 256, generator=torch.Generator().manual_seed(1))
    operator = NonlinearBlur.from_checkpoint(checkpoint, (3, 128, 256), generator=4)
    latent = operator.latent.expand(2, -1, -1, -1)

    def conv(name, value, **options):
        return F.conv2d(value, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def residual(name, value):
        return value + conv(f"{name}.conv2", conv(f"{name}.conv1", value, padding=1).relu(), padding=1)

    def leaky(value):
        return F.leaky_relu(value, 0.1)

    def double(name, value, bias=None):
        return F.conv_transpose2d(value.relu(), state[f"{name}.weight"], bias, stride=2, padding=1)

    features = leaky(conv("feature_extractor.0", x, padding=1))
    features = leaky(conv("feature_extractor.2", features, stride=2, padding=1))
    features = leaky(conv("feature_extractor.4", features, stride=2, padding=1))
    features = residual("feature_extractor.7", residual("feature_extractor.6", features))
    path, skips = "adapter.model.", []
    value = conv(f"{path}down.0", features, stride=2, padding=1)
    for _ in range(4):
        path += "submodule."
        skips.append(value)
        value = conv(f"{path}down.1", F.leaky_relu(value, 0.2), stride=2, padding=1)
    value = torch.cat([value, latent], 1)
    while skips:
        value = torch.cat([double(f"{path}up.1", value), skips.pop()], 1)
        path = path.removesuffix("submodule.")
    value = residual("recon_trunk.0", double(f"{path}up.1", value, state["adapter.model.up.1.bias"]).tanh())
    value = leaky(F.pixel_shuffle(conv("recon_trunk.1", value, padding=1), 2))
    value = leaky(F.pixel_shuffle(conv("recon_trunk.4", value, padding=1), 2))
    value = conv("recon_trunk.9", leaky(conv("recon_trunk.7", value, padding=1)), padding=1)
    want = (x + value).clamp(0, 1)
    assert float((want - x).abs().mean()) > 0.01
    assert torch.allclose(operator(x), want, atol=1e-5)
    wide = NonlinearBlur.from_checkpoint(checkpoint, (3, 128, 256), generator=4, data_range=(-1.0, 1.0))
    assert torch.allclose(wide(2 * x - 1), 2 * want - 1, atol=1e-5)


def test_latent(checkpoint):
    x = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    operator = NonlinearBlur.from_checkpoint(checkpoint, (3, 128, 128), generator=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(operator(x), operator(x)), "one blur per operator"
    assert torch.allclose(operator(x)[:1], operator(x[:1]), atol=1e-6)
    again = NonlinearBlur.from_checkpoint(checkpoint, (3, 128, 128), latent=operator.latent)
    assert torch.equal(operator(x), again(x))
    other = NonlinearBlur.from_checkpoint(checkpoint, (3, 128, 128), generator=2)
    assert float((operator(x) - other(x)).abs().max()) > 1e-3
    assert not any(p.requires_grad for p in operator.parameters())
    large = NonlinearBlur.from_checkpoint(checkpoint, (3, 1024, 2048), generator=0).latent
    assert large.shape == (16, 8, 16)
    assert float(large.std()) == pytest.approx(1.2, rel=0.05)


def test_safetensors_and_prefix(tmp_path, checkpoint):
    from safetensors.torch import save_file

    x = torch.rand(1, 3, 128, 128)
    want = NonlinearBlur.from_checkpoint(checkpoint, (3, 128, 128))(x)
    save_file(small_state(), tmp_path / "weights.safetensors")
    assert torch.equal(NonlinearBlur.from_checkpoint(tmp_path / "weights.safetensors", (3, 128, 128))(x), want)
    torch.save({f"module.{name}": value for name, value in small_state().items()}, tmp_path / "parallel.pth")
    assert torch.equal(NonlinearBlur.from_checkpoint(tmp_path / "parallel.pth", (3, 128, 128))(x), want)


class Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_pickled_code_is_refused(tmp_path):
    torch.save({"a": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        NonlinearBlur.from_checkpoint(tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="only tensors are loaded, never pickled code"):
        NonlinearBlur.from_checkpoint(tmp_path / "bare.pth")


def test_refused_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError):
        NonlinearBlur.from_checkpoint(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        NonlinearBlur.from_checkpoint(tmp_path / "list.pth")
    for broken in ({"conv.weight": torch.zeros(2)}, small_state() | {"recon_trunk.9.bias": torch.zeros(5)}):
        torch.save(broken, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"no state dict of the blur network .*; expected GOPRO_wVAE.pth"):
            NonlinearBlur.from_checkpoint(tmp_path / "other.pth")
    state = small_state()
    del state["adapter.model.down.0.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no state dict of the blur network"):
        NonlinearBlur.from_checkpoint(tmp_path / "other.pth")


def test_refused_shapes(checkpoint):
    with pytest.raises(ValueError, match=r"multiples of 128 pixels, got \(3, 128, 100\)"):
        NonlinearBlur.from_checkpoint(checkpoint, (3, 128, 100))
    with pytest.raises(ValueError, match=r"latent has shape \(16, 2, 2\); images \(3, 128, 128\) need \(16, 1, 1\)"):
        NonlinearBlur.from_checkpoint(checkpoint, (3, 128, 128), latent=torch.zeros(16, 2, 2))


# --- the camera's blur ---


def camera(kernel, shape=(1, 6, 7), **options):
    return CameraBlur(torch.as_tensor(kernel, dtype=torch.float64), shape, dtype=torch.float64, **options)


def test_without_blur_nothing_happens():
    x = torch.linspace(-0.5, 1.7, 42, dtype=torch.float64).reshape(1, 1, 6, 7)
    assert torch.allclose(camera([[1.0]])(x), x, atol=1e-7)
    assert torch.allclose(camera([[3.0]], headroom=20.0, data_range=(-1.0, 3.0))(x), x, atol=1e-7)


def test_response_by_hand():
    """headroom -> 1 has no shoulder: the blur of sRGB light, whose curve is known."""
    operator = camera([[0.5, 0.5]], (1, 1, 2), boundary="circular", headroom=1 + 1e-9)
    y = operator(torch.tensor([[[[0.0, 1.0]]]], dtype=torch.float64))
    assert float(y[0, 0, 0, 0]) == pytest.approx(1.055 * 0.5 ** (1 / 2.4) - 0.055, abs=1e-6)  # 0.735: half the light
    y = operator(torch.tensor([[[[0.0, 0.02]]]], dtype=torch.float64))
    assert float(y[0, 0, 0, 0]) == pytest.approx(0.01, abs=1e-6)  # the curve begins as a straight line


def test_highlights_smear():
    kernel = torch.full((1, 5), 0.2, dtype=torch.float64)
    x = torch.full((1, 1, 6, 7), 0.2, dtype=torch.float64)
    x[..., 3, 3] = 1
    linear = Blur(kernel, (1, 6, 7), "reflect", dtype=torch.float64)(x)
    mild, strong = camera(kernel, headroom=2.0)(x), camera(kernel, headroom=10.0)(x)
    streak = (0, 0, 3, 4)
    # White light weighs more than its grey value says. With headroom the rest of the scene is darker in proportion.
    assert float(mild[streak]) > float(linear[streak]) + 0.05
    assert float(strong[streak]) > float(linear[streak]) + 0.05
    assert 0.2 - 1e-6 <= float(strong.min()) <= float(strong.max()) <= 1
    assert torch.allclose(strong[..., 0, :], x[..., 0, :], atol=1e-6)


def test_camera_is_nonlinear_and_stays_in_range():
    x = torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = camera([[0.2, 0.3, 0.5]])
    assert float((operator(0.5 * x) - 0.5 * operator(x)).abs().max()) > 0.01
    assert 0 <= float(operator(x).min()) <= float(operator(x).max()) <= 1


def test_camera_gradient_everywhere():
    operator = camera([[0.2, 0.3, 0.5], [0.1, 0.0, 0.4]], data_range=(-1.0, 1.0))
    x = 1.5 * torch.randn(2, 1, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(operator, (x.requires_grad_(),), fast_mode=True)
    for value in (-1.0, 1.0):  # black and white, where the slope of a power is infinite and where pieces meet
        flat = torch.full((1, 1, 6, 7), value, dtype=torch.float64, requires_grad=True)
        operator(flat).sum().backward()
        assert float(flat.grad.sum()) == pytest.approx(42, abs=1e-6)


def test_camera_refusals():
    with pytest.raises(ValueError, match="light adds up, so expected weights >= 0"):
        camera([[1.0, -0.5]])
    for headroom in (1.0, 0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"headroom is {headroom}; expected a number > 1"):
            camera([[1.0]], headroom=headroom)
    with pytest.raises(ValueError, match="larger than the image"):
        camera(torch.ones(9, 9))
