"""Packaging. The ranges are those that were seen to install and import together on Python 3.9 to 3.12."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "ernie_vil" / "__init__.py").read_text(encoding="utf-8"))[1]

# PaddleNLP 2.8 imports neither with huggingface_hub 1.x nor with aistudio-sdk 0.3.
PADDLENLP = ["paddlenlp>=2.8.1,<3.1", "aistudio-sdk>=0.1.3,<0.3", "huggingface_hub>=0.19.2,<1.0", "pyarrow<26"]
# The index's sng_parser is another project; SceneGraphParser imports as sng_parser.
SCENE_GRAPH = ["SceneGraphParser==0.1.0", "spacy>=3.7,<3.9"]

setup(
    name="ernie-vil-paddle",
    version=VERSION,
    description="ERNIE-ViL on today's PaddlePaddle: models, training, evaluation, conversion",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["ernie_vil", "ernie_vil.*"]),
    package_data={
        "ernie_vil.data": ["*.csv"],
        "ernie_vil.scene_graph": ["pipeline/*", "pipeline/*/*", "pipeline/*/*/*"],
    },
    python_requires=">=3.9,<3.13",
    install_requires=[
        "paddlepaddle>=3.0.0,<3.4",
        "setuptools",  # Paddle 3.0 imports it on Python 3.12, where it no longer comes with Python
        "numpy>=1.21,<2",
        "protobuf>=3.20.2",
        "PyYAML>=5.4",
        "Pillow>=8.0",
        "lmdb>=1.2",
        "tqdm>=4.60",
        "visualdl>=2.5.3,<3",
    ],
    extras_require={
        "nlp": PADDLENLP,
        "scene-graph": SCENE_GRAPH,
        "test": [*PADDLENLP, *SCENE_GRAPH, "spacy-lookups-data>=1.0.5,<2", "pytest>=7", "hypothesis>=6", "ruff>=0.4"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
