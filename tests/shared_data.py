"""Where the real clips lie, on the machines that have them: beside the checkout."""

from pathlib import Path

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
