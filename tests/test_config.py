"""Configuration: what a TOML file may say, and how a mistake is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run

from pyfedcomm import sync
from pyfedcomm.errors import ConfigError
from pyfedcomm.train import config as config_module
from pyfedcomm.train.config import TrainConfig

MODEL = '[model]\ntype = "gpt2"\n'


def load(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    return config_module.load(file, overrides)


def test_defaults_and_tables(tmp_path: Path) -> None:
    config = load(
        tmp_path, MODEL + 'n_layer = 2\n[train]\nlr = 1\nmin_lr = 0\n[data]\npath = "a"\n'
    )
    assert config.model.options == {"n_layer": 2}
    assert config.train.lr == 1.0
    assert isinstance(config.train.lr, float)
    assert config.data.path == ("a",)
    assert config.sync.rule == "streaming"


def test_overrides_are_toml_or_strings(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        MODEL,
        "train.lr=3e-4",
        "train.min_lr=0",
        "sync.nesterov=false",
        'data.path=["x", "y"]',
        "run.out=runs/a=b",
        "model.n_layer=3",
        "data.clouds.aws.path=/data/aws",
    )
    assert config.train.lr == 3e-4
    assert config.sync.nesterov is False
    assert config.data.path == ("x", "y")
    assert config.run.out == "runs/a=b"
    assert config.model.options == {"n_layer": 3}
    assert config.data.of("aws", ["aws", "gcp"]).path == ("/data/aws",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[trian]\n", r"unknown key 'trian'; did you mean 'train'\?"),
        ("[train]\nlearning = 1\n", r"unknown key 'train.learning'; \[train\] may hold steps, "),
        ("[train]\nlrr = 1\n", r"unknown key 'train.lrr'; did you mean 'train.lr'\?"),
        ("[sync]\nlocal_step = 1\n", r"did you mean 'sync.local_steps'\?"),
        ("[train]\nsteps = 2.5\n", "train.steps is 2.5; it must be a whole number"),
        ("[train]\nsteps = true\n", "train.steps is True; it must be a whole number"),
        ("[train]\nlr = 'big'\n", "train.lr is 'big'; it must be a number"),
        ("[train]\nsteps = 0\n", "train.steps is 0; it must be at least 1"),
        ("[train]\nlr = nan\n", "train.lr is nan; it must be more than 0"),
        ("[train]\nlr = 1e-5\n", "train.min_lr is 0.0001; it must be at most train.lr"),
        ("[train]\nbeta1 = 1.0\n", "train.beta1 is 1.0; it must be at least 0 and below 1"),
        ("[data]\nheldout = 1.0\n", "data.heldout is 1.0"),
        ("[data.clouds.a]\nheldout = 0.0\n", "data.heldout is 0.0"),
        ("[data.clouds.a]\nseq_len = 3\n", "unknown key 'data.clouds.a.seq_len'"),
        ("[data.clouds]\na = 3\n", r"must be a table, \[data.clouds.a\]"),
        ("[data]\npath = 3\n", "data.path is 3; it must be a string or a list of strings"),
        ("[run]\ndevice = 'tpu'\n", "run.device is 'tpu'; it must be auto or cpu or cuda"),
        ("[sync]\nlocal_steps = 0\n", "sync.local_steps is 0"),
        ("[clouds.hosts]\na = 'h'\n", "clouds.hosts.a is 'h'; it must be a list of host names"),
        ("train = 3\n", r"train must be a table, \[train\]"),
        ("[train\n", "is not valid TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text if text.startswith("train") else MODEL + text)


def test_model_is_a_type_or_a_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[model\] needs either type"):
        load(tmp_path, "")
    with pytest.raises(ConfigError, match=r"\[model\] needs either type"):
        load(tmp_path, MODEL + 'path = "dir"\n')
    with pytest.raises(ConfigError, match=r"unknown key 'model.n_layer'; with model.path"):
        load(tmp_path, '[model]\npath = "dir"\nn_layer = 2\n')


@pytest.mark.parametrize(
    ("table", "codec", "local_steps", "overlap_steps"),
    [
        ("", "e3m0", 40, 5),
        ("local_steps = 3", "e3m0", 3, 2),
        ("local_steps = 1", "e3m0", 1, 0),
        ('rule = "diloco"', "int8", 40, 1),
        ('rule = "async"\nlocal_steps = 2', "int8", 2, 1),
        ('rule = "sparse"', "chunk_topk(4096, 64, int2, beta=0.95)", 15, 1),
        ('rule = "sparse"\nlocal_steps = 20\ncodec = "fp32"', "fp32", 20, 1),
        ('rule = "onebit"', "sign", 128, 1),
    ],
)
def test_defaults_of_a_rule(
    tmp_path: Path, table: str, codec: str, local_steps: int, overlap_steps: int
) -> None:
    """What is under way has arrived before its next turn, however short a round is."""
    made = load(tmp_path, f"{MODEL}[sync]\n{table}\n").sync
    assert (made.codec, made.local_steps, made.overlap_steps) == (codec, local_steps, overlap_steps)
    sync.check(made)


@pytest.mark.parametrize("override", ["train.lr", "=3", "train..lr=3"])
def test_an_override_without_key_or_value(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as table.key=value"):
        load(tmp_path, MODEL, override)


def test_an_override_below_a_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'lr' is a value, not a table"):
        load(tmp_path, MODEL + "[train]\nlr = 1.0\n", "train.lr.x=3")


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml: No such file"):
        config_module.load(tmp_path / "nowhere.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.toml is not UTF-8 text"):
        config_module.load(binary)


def test_data_of_a_cloud(tmp_path: Path) -> None:
    data = tiny_run.config(
        tmp_path, data={"path": "/d/{cloud}/*", "clouds": {"b": {"path": ["x"], "heldout": 0.2}}}
    ).data
    assert data.of("a", ["a", "b"]).path == ("/d/a/*",)
    assert data.of("b", ["a", "b"]).path == ("x",)
    assert data.of("b", ["a", "b"]).heldout == 0.2
    with pytest.raises(ConfigError, match="there is no cloud 'b'; the clouds of this run are a, c"):
        data.of("a", ["a", "c"])


def test_shared_keys_leave_out_what_may_differ(tmp_path: Path) -> None:
    keys = config_module.shared(tiny_run.config(tmp_path))
    assert {"sync.codec", "sync.rule", "train.lr", "train.steps", "data.seq_len"} <= keys.keys()
    assert not {"data.path", "run.out", "run.device", "train.micro_batch"} & keys.keys()


def test_the_example_is_valid_and_complete() -> None:
    example = Path(__file__).parent.parent / "examples" / "run.toml"
    config_module.load(example)
    text = example.read_text(encoding="utf-8")
    for rule in sync.names():
        made = config_module.load(example, [f"sync.rule={rule}"]).sync
        sync.check(made)
        assert made == sync.SyncConfig(rule=rule)  # a rule is chosen by one key
    config = config_module.from_table({"model": {"type": "gpt2"}})
    for table in ("run", "data", "train", "sync", "eval", "checkpoint", "log"):
        for key in vars(getattr(config, table)):
            if key != "clouds":
                assert f"\n{key} =" in text or f"\n# {key} =" in text, f"{table}.{key} is missing"
