"""Checkpoints of the published code to runs and back: nothing is guessed, nothing is left random, nothing runs code."""

import json
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from humanml_motion import made_motion, statistics

import sinmdm
from bench.published import PublishedQnANet, PublishedUNet
from sinmdm.cli import main
from sinmdm.motion import HumanMLLayout, Normalizer, Results, read_motion, walker, write_humanml
from sinmdm.presets import PRESETS, PUBLISHED, Preset
from sinmdm.published import ARGUMENTS, export_checkpoint, import_checkpoint
from sinmdm.run import RunError, load
from sinmdm.training import train

FEATURES = 9
QNA = {
    "arch": "qna", "dataset": "humanml", "latent_dim": 8, "layers": 2, "head_dim": 4, "kernel_size": 5,
    "num_downsample": 0, "drop_path": 0.25, "use_diffusion_query": True, "use_global_pe": False,
    "diffusion_steps": 25, "noise_schedule": "linear", "lr": 3e-4, "weight_decay": 0.02, "batch_size": 7,
    "num_steps": 20, "warmup_steps": 5, "sigma_small": False, "sin_path": "clips/one.npy", "seed": 10,
}  # fmt: skip
UNET = {
    "arch": "unet", "dataset": "humanml", "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1",
    "attention_resolutions": "64,32", "image_size": 64, "num_heads": 4, "dropout": 0.0, "use_scale_shift_norm": True,
    "kernel_size": 3, "diffusion_steps": 1000, "noise_schedule": "cosine", "sin_path": "one.npy",
}  # fmt: skip


def published(arguments: dict, features: int = FEATURES) -> torch.nn.Module:
    torch.manual_seed(0)
    network = fresh(arguments, features)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():  # what starts at zero would leave nothing to compare
                parameter.normal_(std=0.1)
    return network


def fresh(arguments: dict, features: int) -> torch.nn.Module:
    if arguments["arch"] == "qna":
        return PublishedQnANet(
            features, latent_dim=arguments["latent_dim"], num_layers=arguments["layers"],
            head_dim=arguments["head_dim"], kernel_size=arguments["kernel_size"],
            diffusion_query=arguments["use_diffusion_query"],
        )  # fmt: skip
    return PublishedUNet(features, num_channels=32, use_scale_shift_norm=arguments["use_scale_shift_norm"])


def checkpoint(folder: Path, arguments: dict, features: int = FEATURES, **changed: object) -> Path:
    """What the published code leaves: a bare state dict of Parameters, args.json, and the clip beside them."""
    folder.mkdir(exist_ok=True)
    state = OrderedDict(
        (name, torch.nn.Parameter(x)) for name, x in published(arguments, features).state_dict().items()
    )
    for name, tensor in changed.items():
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor  # type: ignore[assignment]
    path = folder / "model000000019.pt"
    torch.save(state, path)
    (folder / ARGUMENTS).write_text(json.dumps(arguments, indent=4, sort_keys=True))
    torch.manual_seed(1)
    np.save(folder / "one.npy", torch.randn(40, FEATURES).numpy())
    return path


@pytest.mark.parametrize("arguments", [QNA, UNET], ids=["qna", "unet"])
def test_an_imported_checkpoint_computes_what_the_published_network_does(arguments: dict, tmp_path: Path) -> None:
    run = import_checkpoint(checkpoint(tmp_path / "save", arguments), tmp_path / "run")
    theirs = published(arguments).eval()
    x, t = torch.randn(2, FEATURES, 1, 12), torch.tensor([0, 17])
    with torch.no_grad():
        expected, actual = theirs(x, t), run.network(x, t)
    assert float((actual - expected).norm() / expected.norm()) <= 2e-5
    assert [len(motion) for motion in run.sample(20, 2, sampler="ddim", steps=3)] == [20, 20]


def test_every_hyper_parameter_is_restored(tmp_path: Path) -> None:
    run = import_checkpoint(checkpoint(tmp_path / "save", QNA), tmp_path / "run")
    assert run.preset.architecture == "qna"
    network = run.preset.arguments()
    for theirs, ours in (
        ("latent_dim", "latent_dim"), ("layers", "num_layers"), ("head_dim", "head_dim"), ("drop_path", "drop_path"),
        ("kernel_size", "kernel_size"), ("use_diffusion_query", "diffusion_query"), ("use_global_pe", "use_global_pe"),
    ):  # fmt: skip
        assert network[ours] == QNA[theirs]
    preset = run.preset
    assert (preset.timesteps, preset.schedule, preset.variance) == (25, "linear", "fixed_large")
    assert (preset.learning_rate, preset.weight_decay, preset.batch_size, preset.warmup) == (3e-4, 0.02, 7, 5)
    assert (preset.crop, preset.normalise, preset.ema, preset.resize) == (0, False, 0.0, PUBLISHED["resize"])
    assert torch.equal(run.normalizer.mean, torch.zeros(FEATURES))


@pytest.mark.parametrize("arguments", [QNA, UNET], ids=["qna", "unet"])
def test_out_and_in_again_is_the_same(arguments: dict, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "save", arguments)
    run = import_checkpoint(path, tmp_path / "run")
    exported = export_checkpoint(run, tmp_path / "export")
    assert exported.name == path.name
    before, after = (torch.load(p, weights_only=True) for p in (path, exported))
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    written = json.loads((exported.parent / ARGUMENTS).read_text())
    assert {name: written[name] for name in arguments if name not in ("sin_path", "seed")} == {
        name: value for name, value in arguments.items() if name not in ("sin_path", "seed")
    }
    again = import_checkpoint(exported, tmp_path / "again")
    assert again.preset.arguments() == run.preset.arguments()
    assert replace(again.preset, network={}) == replace(run.preset, network={})
    torch.testing.assert_close(again.sample(9, 1)[0], run.sample(9, 1)[0], rtol=0, atol=0)


def test_old_releases_options_are_read_from_the_weights(tmp_path: Path) -> None:
    arguments = {name: value for name, value in UNET.items() if name != "kernel_size"}
    run = import_checkpoint(checkpoint(tmp_path / "save", arguments), tmp_path / "run")
    assert [run.preset.arguments()[name] for name in ("conv_1d", "use_attention", "use_qna", "kernel_size")] == [
        True, True, True, 3,
    ]  # fmt: skip


def test_a_clip_of_joints_is_written_as_its_own_rig(tmp_path: Path) -> None:
    clip = walker(legs=2, seconds=1.5)
    preset = replace(PRESETS["paper-qna"], network={"latent_dim": 8, "head_dim": 4, "num_layers": 2, "drop_path": 0.0})
    run = train(
        clip, tmp_path / "run", preset=preset, recipe="published", layout="bvh_general", steps=2, progress=False
    )
    exported = export_checkpoint(run, tmp_path / "export")
    again = import_checkpoint(exported, tmp_path / "again")
    (motion,) = again.sample(12, 1, sampler="ddim", steps=2)
    assert motion.names == clip.names
    assert motion.frame_time == pytest.approx(clip.frame_time)
    motion.write(tmp_path / "out.bvh")
    assert read_motion(tmp_path / "out.bvh").names == clip.names


def bad(tmp_path: Path) -> dict:
    """What is wrong -> (how the files are changed, what the error says)."""

    class Evil:
        def __reduce__(self) -> tuple:
            return print, ("ran",)

    def arguments(**changed: object) -> None:
        path = tmp_path / "save" / ARGUMENTS
        path.write_text(json.dumps({**QNA, **changed}))

    def raw(text: bytes, name: str = "model000000019.pt") -> None:
        (tmp_path / "save" / name).write_bytes(text)

    return {
        "no args.json": (lambda: (tmp_path / "save" / ARGUMENTS).unlink(), "args.json: there is no such file"),
        "args.json is not JSON": (lambda: raw(b"{", ARGUMENTS), "args.json: not JSON"),
        "another architecture": (lambda: arguments(arch="gru"), "arch must be one of qna, unet, got 'gru'"),
        "the other architecture": (lambda: arguments(arch="unet"), "has no weight 'input_blocks.0.0.weight'"),
        "another width": (lambda: arguments(latent_dim=16), r"query has shape \(8,\), must have \(16,\)"),
        "fewer layers": (lambda: arguments(layers=1), r"hierarchy_blocks\.h0\.1\.norm1\.weight is not of this network"),
        "more layers": (lambda: arguments(layers=3), r"hierarchy_blocks\.h0\.2\.norm1\.weight is missing"),
        "heads that do not divide": (lambda: arguments(head_dim=3), "head_dim must divide latent_dim = 8"),
        "a schedule that is not there": (lambda: arguments(noise_schedule="sqrt"), "schedule must be one of"),
        "no clip": (lambda: (tmp_path / "save" / "one.npy").unlink(), r"give the one.*--motion"),
        "code in it": (lambda: raw(pickle.dumps({"input_proj.weight": Evil()})), "not a state dict of plain tensors"),
        "damaged": (lambda: raw(b"PK\x03\x04 nonsense"), "not a state dict"),
        "an array as joints": (lambda: arguments(dataset="mixamo"), "mixamo is a clip of joints"),
    }


@pytest.mark.parametrize("what", bad(Path()))
def test_what_does_not_fit_is_an_error_and_leaves_nothing(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "save", QNA)
    change, message = bad(tmp_path)[what]
    change()
    with pytest.raises(RunError, match=message):
        import_checkpoint(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "ran" not in capsys.readouterr().out


def test_missing_and_extra_weights_are_all_listed(tmp_path: Path) -> None:
    extra = {"output_norm.weight": None, "output_proj.bias": None, "other.weight": torch.zeros(2)}
    path = checkpoint(tmp_path / "save", QNA, **extra)
    with pytest.raises(RunError) as caught:
        import_checkpoint(path, tmp_path / "run")
    for part in ("output_norm.weight is missing", "output_proj.bias is missing", "other.weight is not of this network"):
        assert part in str(caught.value)


def test_a_clip_of_other_features_is_an_error(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "save", QNA)
    np.save(tmp_path / "other.npy", np.zeros((30, 4), dtype=np.float32))
    with pytest.raises(RunError, match="has 4 features as 'humanml', the checkpoint has 9"):
        import_checkpoint(path, tmp_path / "run", motion=tmp_path / "other.npy")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "save", QNA)
    with pytest.raises(FileExistsError):
        import_checkpoint(path, tmp_path / "save")
    run = import_checkpoint(path, tmp_path / "run")
    with pytest.raises(FileExistsError):
        export_checkpoint(run, tmp_path / "save")


def test_what_the_published_code_does_not_know_is_not_exported(tmp_path: Path) -> None:
    tiny = Preset(
        network={"d_model": 8, "heads": 2, "layers": 1, "window": 1}, timesteps=5, batch_size=2, crop=8, steps=1
    )
    run = train(torch.randn(30, 3), tmp_path / "window", preset=tiny, progress=False)
    with pytest.raises(ValueError, match="architecture must be one of qna, unet to export, got 'window'"):
        export_checkpoint(run, tmp_path / "out")
    qna = replace(tiny, architecture="qna", network={"latent_dim": 8, "head_dim": 4, "num_layers": 1})
    run = train(torch.randn(30, 3), tmp_path / "qna", preset=qna, progress=False)
    with pytest.raises(ValueError, match="trained on normalised features"):
        export_checkpoint(run, tmp_path / "out")
    clip = walker(legs=2, seconds=1.0)
    run = train(clip, tmp_path / "clip", preset=replace(qna, normalise=False), progress=False)
    with pytest.raises(ValueError, match="layout must be mixamo, bvh_general or an array to export, got 'sinmdm'"):
        export_checkpoint(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_imported_run_is_an_ordinary_one(tmp_path: Path) -> None:
    run = import_checkpoint(checkpoint(tmp_path / "save", QNA), tmp_path / "run")
    assert torch.equal(load(tmp_path / "run").sample(9, 1)[0], run.sample(9, 1)[0])
    assert torch.equal(sinmdm.load(tmp_path / "run").sample(9, 1)[0], run.sample(9, 1)[0])
    assert next(iter(run.stream(chunk=8, steps=2))).shape == (8, FEATURES)


@pytest.fixture
def humanml(tmp_path: Path) -> tuple[Path, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A checkpoint on HumanML3D with its normalised motion, Mean.npy and Std.npy; and the motion, mean and std."""
    path = checkpoint(tmp_path / "save", QNA, 263)
    features, _ = made_motion()
    mean, std = statistics(features)
    write_humanml(path.parent / "one.npy", features, normalised=True, mean=mean, std=std)
    np.save(path.parent / "Mean.npy", mean.numpy())
    np.save(path.parent / "Std.npy", std.numpy())
    return path, features, mean, std


def test_a_network_on_normalised_features_makes_raw_ones(humanml: tuple, tmp_path: Path) -> None:
    path, features, mean, std = humanml
    run = import_checkpoint(path, tmp_path / "run", features="normalised", mean=mean, std=std)
    assert run.layout == HumanMLLayout()
    assert run.fps == 20
    x, t = torch.randn(2, 263, 1, 12), torch.tensor([0, 17])
    with torch.no_grad():
        expected, actual = published(QNA, 263).eval()(x, t), run.network(x, t)
    assert float((actual - expected).norm() / expected.norm()) <= 2e-5
    normalizer = Normalizer(mean, std)
    assert ((run.motion - features).abs() <= 2 * torch.finfo(torch.float32).eps * (features.abs() + mean.abs())).all()
    (known,), (made,) = run.features(20, 1), run.sample(20, 1)
    assert torch.equal(made, normalizer.invert(known))
    again = load(tmp_path / "run")
    assert torch.equal(again.normalizer.mean, mean)
    assert torch.equal(again.normalizer.std, std)


def test_a_network_on_raw_features(humanml: tuple, tmp_path: Path) -> None:
    path, features, _, _ = humanml
    write_humanml(path.parent / "one.npy", features, normalised=False)
    run = import_checkpoint(path, tmp_path / "run", features="raw")
    assert torch.equal(run.motion, features)
    (known,), (made,) = run.features(9, 1), run.sample(9, 1)
    assert torch.equal(made, known)
    exported = export_checkpoint(run, tmp_path / "export")
    assert sorted(file.name for file in exported.parent.iterdir()) == ["args.json", exported.name, "motion.npy"]
    assert torch.equal(read_motion(exported.parent / "motion.npy"), features)


def test_humanml_out_and_in_again_is_the_same(humanml: tuple, tmp_path: Path) -> None:
    path, _, mean, std = humanml
    run = import_checkpoint(path, tmp_path / "run", features="normalised", mean=mean, std=std)
    exported = export_checkpoint(run, tmp_path / "export")
    before, after = (torch.load(p, weights_only=True) for p in (path, exported))
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    given = [f"--{name}={exported.parent / name.capitalize()}.npy" for name in ("mean", "std")]
    assert main(["import", str(exported), "--out", str(tmp_path / "again"), "--features", "normalised", *given]) == 0
    assert torch.equal(load(tmp_path / "again").sample(9, 1)[0], run.sample(9, 1)[0])


def test_the_command_on_humanml(humanml: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _, _, _ = humanml
    motion = path.parent / "one.npy"
    files = [f"--{name}={path.parent / name.capitalize()}.npy" for name in ("mean", "std")]

    def command(*options: str) -> tuple[int, str]:
        status = main(["import", str(path), "--out", str(tmp_path / "run"), "--motion", str(motion), *options])
        return status, capsys.readouterr().err

    for options, message in {
        (): "must say whether it is raw or normalised, got None (--features)",
        ("--features", "raw"): "said to be raw, but it has a foot contact of",
        ("--features", "normalised"): "--features normalised needs --mean and --std",
        ("--features", "normalised", files[0], f"--std={path.parent / 'Mean.npy'}"): "std finite and positive",
        tuple(files): "--mean and --std are of --features normalised",
    }.items():
        status, error = command(*options)
        assert status == 2
        assert message in error
        assert not (tmp_path / "run").exists()
    assert command("--features", "normalised", *files)[0] == 0
    out = tmp_path / "motions"
    assert main(["sample", str(tmp_path / "run"), "--seconds", "1", "--out", str(out), "--steps", "2", "--quiet"]) == 0
    results, sample = Results.read(out / "results.npz"), read_motion(out / "sample00.npy")
    np.testing.assert_array_equal(results.positions[0], HumanMLLayout().placer()(sample).float().numpy())
    assert results.positions.shape == (1, 20, 22, 3)


def test_features_are_said_of_humanml_only(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "save", QNA)
    with pytest.raises(RunError, match="features, mean and std are of a humanml checkpoint"):
        import_checkpoint(path, tmp_path / "run", features="raw")
    assert not (tmp_path / "run").exists()


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "save", QNA)
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    assert main(["import", str(path), "--out", run, "--motion", str(tmp_path / "save" / "one.npy")]) == 0
    assert main(["sample", run, "--frames", "9", "--out", str(tmp_path / "motions"), "--steps", "2", "--quiet"]) == 0
    assert main(["export", run, "--out", out]) == 0
    assert (tmp_path / "out" / path.name).is_file()
    assert main(["export", run, "--out", out]) == 2  # there is something
    assert main(["import", str(path), "--out", str(tmp_path / "b"), "--args", str(tmp_path / "no.json")]) == 2
    assert "no.json: there is no such file" in capsys.readouterr().err
