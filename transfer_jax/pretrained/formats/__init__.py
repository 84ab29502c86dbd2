"""Files of parameters, read and written without the framework that they come from, and without running a pickle."""

from transfer_jax.pretrained.formats.keras_names import name_keras_variables
from transfer_jax.pretrained.formats.reading import read_tensors
from transfer_jax.pretrained.formats.tensor_file import TensorFile
from transfer_jax.pretrained.formats.wrapping import unwrap_state_dict
from transfer_jax.pretrained.formats.writing import write_tensors

__all__ = ["TensorFile", "name_keras_variables", "read_tensors", "unwrap_state_dict", "write_tensors"]
