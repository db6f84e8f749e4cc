"""Examples for calibration, evaluation and certification: from files, folders and iterators to checked, divided arrays.

``compiler.recipe.data_section`` is the recipe's table; ``loading`` reads it by kind (``npz``, ``table`` over
``csv_file`` and ``parquet_file``, ``images``, ``iterator``; ``text`` for tokens), has every array checked by
``untrusted`` and divides by use (``splitting``, ``dataset``). Libraries for parquet, images and text are imported when
such a source is read.
"""

from compiler.data.dataset import Dataset, Split, batches
from compiler.data.fingerprint import fingerprint, preprocessing
from compiler.data.infer_section import infer
from compiler.recipe.data_section import DataSection

__all__ = [
    "DataSection",
    "Dataset",
    "Split",
    "batches",
    "fingerprint",
    "infer",
    "preprocessing",
]
