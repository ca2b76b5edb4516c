"""What pyproject.toml cannot say: a wheel has conf/, which lies at the top of the checkout, inside the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConf(build_py):
    """Copies conf/ to selfdraft/conf, except in an editable installation, which reads it where it is."""

    def run(self) -> None:
        """Build the packages, and add the folder."""
        super().run()
        if not self.editable_mode:
            self.copy_tree("conf", str(Path(self.build_lib, "selfdraft", "conf")))


setup(cmdclass={"build_py": WithConf})
