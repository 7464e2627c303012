"""What pyproject.toml cannot say: the wheel holds `static/` inside `app`, and the commit that it was built from."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def commit() -> str:
    """The commit of this checkout; `unknown` without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


class Build(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            app = Path(self.build_lib) / "app"
            shutil.copytree(HERE / "static", app / "static", dirs_exist_ok=True)
            (Path(self.build_lib) / "model" / "commit.txt").write_text(commit() + "\n")


setup(cmdclass={"build_py": Build})
