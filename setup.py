"""Adds to the wheel what pyproject.toml cannot express: `static/` inside `app`, and the commit it is built from."""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
commit = runpy.run_path(str(HERE / "model" / "build.py"))["commit"]


class Build(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            app = Path(self.build_lib) / "app"
            shutil.copytree(HERE / "static", app / "static", dirs_exist_ok=True)
            (Path(self.build_lib) / "model" / "commit.txt").write_text(commit() + "\n")


setup(cmdclass={"build_py": Build})
