"""Settings: defaults, config files, --key=value; anything doubtful is refused with its place. See test_fuzz.py, too."""

import pytest
from conftest import REPO, command, refuse, succeed

from classifier.errors import UserError
from classifier.settings import ARE_LOCAL, BELOW_ONE, CHOICES, MAY_CHANGE, NAMES, POSITIVE, read_settings

SCRIPT = '''"""A script."""
import os
learning_rate = 0.5  # how fast
block_size = 10  # how long
prompt = "a"  # what to ask
warmth = 2  # without a row in the table
label_words = []  # a word each
compile = False  # fuse
LIMIT = 3
'''
DEFAULTS = {"learning_rate": 0.5, "block_size": 10, "prompt": "a", "warmth": 2, "label_words": [], "compile": False}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    (folder / "script.py").write_text(SCRIPT)

    def load(*arguments: str, config: str | bytes | None = None) -> dict:
        arguments = list(arguments)
        if config is not None:
            (folder / "config.py").write_bytes(config.encode() if isinstance(config, str) else config)
            arguments.insert(0, str(folder / "config.py"))
        return vars(read_settings(str(folder / "script.py"), arguments))

    return load


def test_defaults_then_config_then_command_line(load):
    assert load() == DEFAULTS
    config = '\ufeff"""about"""\n# a comment\nlearning_rate = 1e-3\nblock_size = 3  # three\n'
    assert load(config=config) == DEFAULTS | {"learning_rate": 1e-3, "block_size": 3}
    found = load(
        "--block_size=7", "--prompt=12", "--compile=True", "--label_words=a,b", "--learning_rate=2", config=config
    )
    given = {"block_size": 7, "prompt": "12", "compile": True, "label_words": ["a", "b"], "learning_rate": 2.0}
    assert found == DEFAULTS | given and type(found["learning_rate"]) is float
    for text, words in {"bad,good": ["bad", "good"], "[' bad','good']": [" bad", "good"], "0,4": ["0", "4"]}.items():
        assert load(f"--label_words={text}")["label_words"] == words


def test_nothing_in_a_config_file_is_executed(load, tmp_path):
    trap = tmp_path / "trap"
    with pytest.raises(UserError, match=r"config.py:2: a config file may only contain"):
        load(config=f"block_size = 1\nopen({str(trap)!r}, 'w').close()")
    lines = ["import os", "block_size = 2 * 3", "block_size = int('3')", "a = b = 3", "block_size += 1", "os.a = 3"]
    for line in lines:
        with pytest.raises(UserError, match=r"config.py:1: "):
            load(config=line)
    assert not trap.exists()


@pytest.mark.parametrize(
    "config, message",
    [
        ("block_sise = 3", r"config.py:1: unknown setting 'block_sise'; did you mean 'block_size'\?"),
        ("\nblock_size = 3.5", r"config.py:2: block_size must be of type int, not float 3.5"),
        ("block_size = True", r"block_size must be of type int, not bool"),
        ("learning_rate = 1e999", r"learning_rate must be a finite number, not inf"),
        (f"block_size = {2**53}", r"block_size must be below 2\*\*53"),
        ("label_words = [1, 1]", r"label_words must be a list of words"),
        ("\nblock_size = (", r"config.py:2: not Python syntax"),
        (b"prompt = '\xff'", r"config.py.* not Python syntax: 'utf-8' codec can't decode"),
    ],
)
def test_bad_config_lines_are_refused_with_their_place(load, config, message):
    with pytest.raises(UserError, match=message):
        load(config=config)


def test_help_lists_every_setting_and_like_a_typo_does_not_import_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    message = refuse("finetune.py", "--learning_rat=1", cwd=tmp_path, run=command, env=environment)
    assert "did you mean 'learning_rate'?" in message
    text = succeed("finetune.py", "--help", cwd=tmp_path, run=command, env=environment)
    import finetune

    kinds = (int, float, str, bool, list)
    names = {name for name, value in vars(finetune).items() if name.islower() and type(value) in kinds}
    names = {name for name in names if not name.startswith("_")}
    for name in names:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  --{name}=")]
        assert line.startswith(f"  --{name}={getattr(finetune, name)}")
        assert len(line.split(maxsplit=1)[1]) > 5, f"{name} has no explanation"
    assert len(names) == text.count("\n  --") > 20
    assert names >= {*POSITIVE, *BELOW_ONE, *NAMES, *CHOICES, *MAY_CHANGE, *ARE_LOCAL}


def test_finetune_refuses_bad_arguments():
    for argument, message in (
        ("--block_size", "no config file '--block_size'; settings are given as --key=value"),
        ("--block_size=many", "--block_size: block_size must be of type int, not str 'many'"),
        ("--dropout=1.0", "dropout must be below 1"),
        ("--trainable_blocks=-2", "trainable_blocks must be -1 or more"),
        ("--learning_rate=-1", "learning_rate must be above 0"),
        ("--lr_schedule=linear", "lr_schedule must be one of constant, cosine"),
        ("--label_words=a,,b", "label_words must be a list of words"),
        ("--out_dir=", "out_dir must be a name"),
        ("--prompt=\udcff hello", "prompt must be text in UTF-8"),
    ):
        with pytest.raises(UserError, match=message):
            read_settings(str(REPO / "finetune.py"), [argument])


@pytest.mark.parametrize(
    "words, meant",
    [
        (["finetune.py", "--data_dir=data/smaple"], "data/sample"),
        (["finetune.py", "config/sampel.py"], "config/sample.py"),
        (["finetune.py", "config/sample.py", "--init_from=scratc"], "scratch"),
        (["finetune.py", "config/sample.py", "--init_from=out-ticket/best.pt"], "out-tickets/best.pt"),
        (["finetune.py", "config/sample.py", "--init_from=out-tickets"], "out-tickets/best.pt"),
        (["evaluate.py", "--ckpt", "out-tickets"], "out-tickets/best.pt"),
        (["evaluate.py", "--ckpt", "out_tickets/beast.pt"], "out-tickets/best.pt"),
        (["prepare_own.py", "--name=t", "--train", "data/sample/trian.tsv"], "data/sample/train.tsv"),
    ],
)
def test_a_misspelt_path_is_recognized(workspace, words, meant):
    (workspace / "out-tickets").mkdir()
    (workspace / "out-tickets" / "best.pt").touch()
    assert refuse(*words, cwd=workspace).endswith(f"; did you mean {meant}?\n")


def test_the_configs_that_come_with_the_repository_load():
    for path in (REPO / "config").glob("*.py"):
        read_settings(str(REPO / "finetune.py"), [str(path)])
