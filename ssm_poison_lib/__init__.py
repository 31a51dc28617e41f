"""The helper library of the book: import its modules, e.g. `from ssm_poison_lib import flow`."""
