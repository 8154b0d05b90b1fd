//! Environment variables that a worker is started with, and those that users set.
//!
//! The first group is the convention of PyTorch (`torchrun` sets the same); those that start with `FNET_` are fnet's own.

/// Rank of this worker in the job, from 0.
pub const RANK: &str = "RANK";
/// Rank of this worker on its node, from 0.
pub const LOCAL_RANK: &str = "LOCAL_RANK";
/// Number of workers in the job.
pub const WORLD_SIZE: &str = "WORLD_SIZE";
/// Number of workers on this node.
pub const LOCAL_WORLD_SIZE: &str = "LOCAL_WORLD_SIZE";
/// Rank of this node in the job, from 0 (the launcher sets it as `torchrun` does).
pub const GROUP_RANK: &str = "GROUP_RANK";
/// Host name or address of the store, on the node of rank 0.
pub const MASTER_ADDR: &str = "MASTER_ADDR";
/// TCP port of the store. In the launcher's own environment: the port to use with several nodes.
pub const MASTER_PORT: &str = "MASTER_PORT";
/// Number of a listening socket that rank 0 inherits and serves the store on; it is bound to `MASTER_PORT` already.
pub const STORE_FD: &str = "FNET_STORE_FD";
/// Number of an inherited Unix stream socket: the control channel (see [`crate::message`]).
pub const CONTROL: &str = "FNET_CONTROL";
/// Number of an inherited file of memory in which the worker says what it does (see [`crate::state`]).
pub const STATE_FD: &str = "FNET_STATE_FD";
/// How often the launcher has restarted this job, from 0.
pub const RESTART_COUNT: &str = "FNET_RESTART_COUNT";
/// `cuda` or `cpu`: where a worker computes. Unset: CUDA if the worker sees a GPU, else the CPU.
pub const DEVICE: &str = "FNET_DEVICE";
/// How much is printed for people: `-1` quiet, `0` normal, `1` and more verbose.
pub const VERBOSITY: &str = "FNET_VERBOSITY";
/// Number of workers that a job would have: a worker that finds it says what `train` or `test` would do
/// ([`crate::estimate::Estimate`]), and does nothing.
pub const DRY_RUN: &str = "FNET_DRY_RUN";
/// Set by torchrun: the store is served by its agent, and rank 0 is a client like the others.
pub const TORCHELASTIC_USE_AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";
/// Indices or UUIDs of the GPUs that a process sees.
pub const CUDA_VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
/// Settings of the C library; workers on the CPU get some for its memory allocator unless the user has set them.
pub const GLIBC_TUNABLES: &str = "GLIBC_TUNABLES";
/// Settings of libtorch's allocator for GPUs; workers on GPUs get some unless the user has set it or its older name.
pub const PYTORCH_ALLOC_CONF: &str = "PYTORCH_ALLOC_CONF";
/// Older name of [`PYTORCH_ALLOC_CONF`].
pub const PYTORCH_CUDA_ALLOC_CONF: &str = "PYTORCH_CUDA_ALLOC_CONF";
/// Threads of one worker; set to cores / workers unless the user has set it.
pub const OMP_NUM_THREADS: &str = "OMP_NUM_THREADS";

/// Number of nodes (default of `--nnodes`).
pub const NNODES: &str = "NNODES";
/// Rank of this node (default of `--node-rank`).
pub const NODE_RANK: &str = "NODE_RANK";
/// Port of the store as dist_train.sh names it; read only with several nodes and without `MASTER_PORT`.
pub const PORT: &str = "PORT";
/// Seconds in which all nodes must have met (default of `--join-timeout`).
pub const JOIN_TIMEOUT: &str = "FNET_JOIN_TIMEOUT";
/// Network interface of Gloo's connections; set from `--iface` unless the user has set it.
pub const GLOO_SOCKET_IFNAME: &str = "GLOO_SOCKET_IFNAME";
/// Network interface of NCCL's connections; set from `--iface` unless the user has set it.
pub const NCCL_SOCKET_IFNAME: &str = "NCCL_SOCKET_IFNAME";
/// Path of the worker to start instead of the `fnet-worker` beside the launcher or on PATH.
pub const WORKER: &str = "FNET_WORKER";
/// Path of the library by which a worker under mpirun speaks to MPI, instead of the `libfnet_mpi.so` beside it.
pub const MPI_LIBRARY: &str = "FNET_MPI_LIBRARY";
/// Folder that relative paths of data sets start from, instead of `data/coco`.
pub const DATA_ROOT: &str = "FNET_DATA_ROOT";
/// Folder with `data/` and `reference/` for tests on real pictures.
pub const TEST_DATA: &str = "FNET_TEST_DATA";
