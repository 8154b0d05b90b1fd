//! The ranks of a job: rendezvous, process group, data-parallel training.
