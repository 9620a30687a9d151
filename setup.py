"""What pyproject.toml cannot say: a wheel brings the workflow and its configuration along, inside the package."""

from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithWorkflow(build_py):
    """Copies what lies beside the package in the repository into `baklava/workflow_files`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the repository is used where it is
            return
        target = Path(self.build_lib) / "baklava" / "workflow_files"
        for name in ("conf", "workflow"):
            copytree(ROOT / name, target / name, ignore=ignore_patterns(".*", "__pycache__"), dirs_exist_ok=True)
        self.copy_file(str(ROOT / "Snakefile"), str(target / "Snakefile"))


setup(cmdclass={"build_py": BuildWithWorkflow})
