"""Tests import the five modules from the project's root, wherever pytest was started."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
