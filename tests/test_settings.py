"""Settings: defaults, then config files, then --key=value; anything doubtful is refused with its place."""

import time

import pytest
from conftest import REPO, command, refuse, succeed
from hypothesis import given, settings
from hypothesis import strategies as st

from classifier.errors import UserError
from classifier.settings import SETTINGS, Setting, read_settings

SCRIPT = '''"""A script."""
import os
rate = 0.5  # how fast
steps = 10  # how many
name = "a"  # what it is called
quiet = False  # say nothing
LIMIT = 3
'''
RULES = {"steps": Setting((lambda value: value > 0, "above 0"))}


@pytest.fixture
def load(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def load(*arguments: str, config: str | bytes | None = None) -> dict:
        arguments = list(arguments)
        if config is not None:
            path = tmp_path / "config.py"
            path.write_bytes(config.encode("utf-8", "surrogatepass") if isinstance(config, str) else config)
            arguments.insert(0, str(path))
        return vars(read_settings(str(tmp_path / "script.py"), arguments, RULES))

    return load


def test_defaults_then_config_then_command_line(load):
    assert load() == {"rate": 0.5, "steps": 10, "name": "a", "quiet": False}
    assert load(config="rate = 1e-3\nsteps = 3") == {"rate": 1e-3, "steps": 3, "name": "a", "quiet": False}
    assert load("--steps=7", "--name=12", "--quiet=True", config="steps = 3") == {
        "rate": 0.5,
        "steps": 7,
        "name": "12",
        "quiet": True,
    }
    assert load("--rate=2")["rate"] == 2.0 and isinstance(load("--rate=2")["rate"], float)


def test_a_config_file_may_hold_comments_and_a_docstring_but_nothing_to_execute(load, tmp_path):
    assert load(config='"""about"""\n# a comment\nsteps = 4  # four\n')["steps"] == 4
    trap = tmp_path / "trap"
    with pytest.raises(UserError, match=r"config.py:2: a config file holds only"):
        load(config=f"steps = 1\nopen({str(trap)!r}, 'w').close()")
    for line in ("import os", "steps = 2 * 3", "steps = int('3')", "a = b = 3", "steps += 1", "os.environ = 3"):
        with pytest.raises(UserError, match=r"config.py:1: "):
            load(config=line)
    assert not trap.exists()


@pytest.mark.parametrize(
    "config, message",
    [
        ("stepps = 3", r"config.py:1: unknown setting 'stepps'; did you mean 'steps'\?"),
        ("\nsteps = 3.5", r"config.py:2: steps must be of type int, not float 3.5"),
        ("steps = True", r"steps must be of type int, not bool"),
        ("quiet = 1", r"quiet must be of type bool, not int 1"),
        ("steps = 0", r"config.py:1: steps must be above 0, not 0"),
        ("rate = 1e999", r"rate must be a finite number, not inf"),
        ("steps = (", r"config.py:1: not Python syntax"),
        ("steps = 3\x00", r"config.py.* not Python syntax"),
        (b"steps = '\xff'", r"cannot be read"),
        ("LIMIT = 4", r"unknown setting 'LIMIT'"),
    ],
)
def test_bad_config_lines_are_refused_with_their_place(load, config, message):
    with pytest.raises(UserError, match=message):
        load(config=config)


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--stepz=3", r"--stepz: unknown setting 'stepz'; did you mean 'steps'\?"),
        ("--steps", "write settings as --key=value"),
        ("-steps=3", "write settings as --key=value"),
        ("--steps=many", "--steps: steps must be of type int, not str 'many'"),
        ("--steps=-1", "--steps: steps must be above 0, not -1"),
        ("nowhere.py", "config file 'nowhere.py' does not exist"),
    ],
)
def test_bad_arguments_are_refused(load, argument, message):
    with pytest.raises(UserError, match=message):
        load(argument)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="rates=-0.e19 '\"[]()\n\t#", max_size=60))
def test_any_text_is_loaded_or_refused(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    (folder / "script.py").write_text(SCRIPT)
    (folder / "config.py").write_bytes(text.encode())
    for argument in (str(folder / "config.py"), "--steps=" + text, text.replace("-h", "") or "x"):
        try:
            loaded = vars(read_settings(str(folder / "script.py"), [argument], RULES))
        except UserError:
            continue
        assert {name: type(value) for name, value in loaded.items()} == {
            "rate": float,
            "steps": int,
            "name": str,
            "quiet": bool,
        }


def test_help_lists_every_setting_and_answers_at_once(tmp_path):
    started = time.monotonic()
    text = succeed("finetune.py", "--help", cwd=tmp_path, run=command)
    assert time.monotonic() - started < 5  # importing PyTorch would not fit into a second; this is only a safe bound
    import finetune

    names = {
        name
        for name, value in vars(finetune).items()
        if name.islower() and type(value) in (int, float, str, bool, list)
    }
    names -= {name for name in names if name.startswith("_")}
    for name in names:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  --{name}=")]
        assert line.startswith(f"  --{name}={getattr(finetune, name)}")
        assert len(line.split(maxsplit=1)[1]) > 5, f"{name} has no explanation"
    assert len(names) == text.count("\n  --") > 20
    assert names == set(SETTINGS)  # the table knows each of them, and nothing else


def test_help_and_a_typo_do_not_import_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    assert "--learning_rate=5e-05" in succeed("finetune.py", "--help", cwd=tmp_path, run=command, env=environment)
    message = refuse("finetune.py", "--learning_rat=1", cwd=tmp_path, run=command, env=environment)
    assert "did you mean 'learning_rate'?" in message


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--batch_size=0", "batch_size must be above 0"),
        ("--dropout=1.0", "dropout must be at least 0 and below 1"),
        ("--learning_rate=-1", "learning_rate must be above 0"),
        ("--device=tpu", "device must be one of auto, cuda, mps, cpu"),
        ("--lr_schedule=linear", "lr_schedule must be one of constant, cosine"),
    ],
)
def test_finetune_refuses_bad_values(tmp_path, argument, message):
    assert message in refuse("finetune.py", argument, cwd=tmp_path)


@pytest.mark.parametrize("path", sorted((REPO / "config").glob("*.py")), ids=lambda path: path.name)
def test_the_configs_that_come_with_the_repository_load(path):
    import finetune

    read_settings(finetune.__file__, [str(path)])


def test_text_that_is_no_text_is_refused():
    import finetune

    for argument in ("--prompt=\udcff hello", '--label_words=["\\ud800", "bad"]'):
        with pytest.raises(UserError, match="holds what is no character"):
            read_settings(finetune.__file__, [argument])
