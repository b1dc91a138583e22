"""The former name of `store`, until all callers have moved."""

from manifoldnet.experiments import store

read_all, check, keep, clean, lock = (
    store.read_all,
    store.check,
    store.keep,
    store.clean,
    store.lock,
)
path_of, run_directory, experiment = store.path_of, store.run_directory, store.experiment
