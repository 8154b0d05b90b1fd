//! Process groups and their collectives.

use std::ffi::{CString, c_char};
use std::marker::PhantomData;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::connections::Connections;
use super::store::TcpStore;
use super::{c_string, milliseconds, nccl};
use crate::error::{Error, ErrorKind, RawError, Result, check};
use crate::ffi::{RawGroup, RawStore, RawWork, new_object, new_tensor, pointer, pointers};

unsafe extern "C" {
    fn fnet_gloo_new(
        store: *mut RawStore,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        interface: *const c_char,
        hostname: *const c_char,
        out: *mut *mut RawGroup,
    ) -> *mut RawError;
    fn fnet_group_all_reduce(
        group: *mut RawGroup,
        tensor: *mut C_tensor,
        op: i32,
        timeout_ms: i64,
        out: *mut *mut RawWork,
    ) -> *mut RawError;
    fn fnet_group_broadcast(
        group: *mut RawGroup,
        tensor: *mut C_tensor,
        root: i32,
        timeout_ms: i64,
        out: *mut *mut RawWork,
    ) -> *mut RawError;
    fn fnet_group_all_gather(
        group: *mut RawGroup,
        outputs: *const *mut C_tensor,
        count: usize,
        input: *mut C_tensor,
        timeout_ms: i64,
        out: *mut *mut RawWork,
    ) -> *mut RawError;
    fn fnet_group_barrier(group: *mut RawGroup, device: i32, timeout_ms: i64, out: *mut *mut RawWork) -> *mut RawError;
    fn fnet_work_wait(work: *mut RawWork, timeout_ms: i64) -> *mut RawError;
    fn fnet_work_free(work: *mut RawWork) -> *mut RawError;
    fn fnet_group_all_reduce_sum(
        group: *mut RawGroup,
        tensor: *mut C_tensor,
        watch: extern "C" fn(bool),
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_group_set_timeout(group: *mut RawGroup, timeout_ms: i64) -> *mut RawError;
    fn fnet_group_abort(group: *mut RawGroup, cuda: bool) -> *mut RawError;
    fn fnet_group_shutdown(group: *mut RawGroup) -> *mut RawError;
    fn fnet_group_cuda_error(group: *mut RawGroup, out: *mut i32) -> *mut RawError;
    fn fnet_group_clone(group: *mut RawGroup, out: *mut *mut RawGroup) -> *mut RawError;
    fn fnet_group_free(group: *mut RawGroup) -> *mut RawError;
}

/// How an all-reduce combines the values of the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// Their sum divided by the number of ranks.
    Mean,
    /// The smallest.
    Min,
    /// The largest.
    Max,
}

/// Where a Gloo group listens; with neither, at the address that the machine's name resolves to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GlooOptions {
    /// The network interface, as "eth0"; wins over the hostname.
    pub interface: Option<String>,
    /// A local host name or address.
    pub hostname: Option<String>,
}

impl GlooOptions {
    /// What a user knows of it: the interface, the host name, or where the default comes from.
    pub fn address(&self) -> &str {
        self.interface.as_deref().or(self.hostname.as_deref()).unwrap_or("the address of the machine's name")
    }
}

/// The ranks of a job and the connections between them.
///
/// All ranks must start the same collectives in the same order. Tensors on the CPU travel by Gloo, tensors on CUDA by
/// NCCL if [`ProcessGroup::add_nccl`] was called. A collective that fails leaves the group unusable.
pub struct ProcessGroup {
    raw: *mut RawGroup,
    rank: usize,
    size: usize,
    cuda_device: Option<usize>,
    connections: Arc<Connections>,
}

// SAFETY: c10d's process groups are not bound to a thread; the handle is used by one thread at a time.
unsafe impl Send for ProcessGroup {}

impl ProcessGroup {
    /// Connects to all other ranks by Gloo. `timeout` is the deadline of the connection, and of every collective that
    /// is given none.
    /// Errors: if a rank does not come before the deadline, or the address cannot be bound.
    pub fn gloo(store: &TcpStore, rank: usize, size: usize, timeout: Duration, options: &GlooOptions) -> Result<Self> {
        let interface = options.interface.as_deref().map(c_string).transpose()?;
        let hostname = options.hostname.as_deref().map(c_string).transpose()?;
        let text = |name: &Option<CString>| name.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
        let before = Connections::now();
        let (own, all, timeout) = (to_int(rank), to_int(size), milliseconds(timeout));
        // SAFETY: the strings are null or valid C strings, and live through the call; `out` is written on success.
        let raw = new_object(|out| unsafe {
            fnet_gloo_new(store.raw(), own, all, timeout, text(&interface), text(&hostname), out)
        })
        .map_err(|error| error.context(&format!("connecting rank {rank} of {size} to its peers")))?;
        let mut group = Self::from_raw(raw, rank, size);
        group.connections = Arc::new(Connections::now().since(&before));
        Ok(group)
    }

    /// Adds NCCL for tensors on this rank's CUDA device; [`cuda::load_libraries`](crate::cuda::load_libraries) must
    /// have succeeded.
    /// Errors: if the library of the NCCL part is absent, or NCCL does not start.
    pub fn add_nccl(&mut self, store: &TcpStore, device: usize, timeout: Duration) -> Result<()> {
        nccl::add(self.raw, store.raw(), to_int(self.rank), to_int(self.size), to_int(device), milliseconds(timeout))?;
        self.cuda_device = Some(device);
        Ok(())
    }

    /// This process's place, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Starts an all-reduce of the tensor in place.
    /// Errors: if it cannot start.
    pub fn all_reduce<'a>(&'a self, tensor: &'a Tensor, how: Reduction, timeout: Duration) -> Result<Work<'a>> {
        let op = match how {
            Reduction::Sum => 0,
            Reduction::Mean => 1,
            Reduction::Min => 2,
            Reduction::Max => 3,
        };
        // SAFETY: live handles; `out` is written on success.
        Work::start(|out| unsafe { fnet_group_all_reduce(self.raw, pointer(tensor), op, milliseconds(timeout), out) })
    }

    /// Starts copying rank `root`'s values into the tensor of every rank.
    /// Errors: if it cannot start.
    pub fn broadcast<'a>(&'a self, tensor: &'a Tensor, root: usize, timeout: Duration) -> Result<Work<'a>> {
        // SAFETY: live handles; `out` is written on success.
        Work::start(|out| unsafe {
            fnet_group_broadcast(self.raw, pointer(tensor), to_int(root), milliseconds(timeout), out)
        })
    }

    /// Starts collecting the tensor of every rank; all have the same shape. `outputs[r]` takes rank `r`'s.
    /// Errors: if it cannot start, or there is not one output per rank.
    pub fn all_gather<'a>(&'a self, outputs: &'a [Tensor], input: &'a Tensor, timeout: Duration) -> Result<Work<'a>> {
        if outputs.len() != self.size {
            let message = format!("all-gather into {} tensors, expected one per rank: {}", outputs.len(), self.size);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let outputs = pointers(outputs);
        // SAFETY: live handles and an array of as many pointers; the C++ side copies the handles.
        Work::start(|out| unsafe {
            fnet_group_all_gather(self.raw, outputs.as_ptr(), outputs.len(), pointer(input), milliseconds(timeout), out)
        })
    }

    /// Starts waiting for all ranks.
    /// Errors: if it cannot start.
    pub fn barrier(&self, timeout: Duration) -> Result<Work<'_>> {
        // On the CPU also with NCCL: it waits for the processes, not for their kernels.
        // SAFETY: live handle; `out` is written on success.
        Work::start(|out| unsafe { fnet_group_barrier(self.raw, -1, milliseconds(timeout), out) })
    }

    /// The sum of the tensor over the ranks, as a step of the computation: its gradient is the sum of the gradients.
    /// Blocks on the CPU; on CUDA the stream waits. All ranks must take part in the backward pass too.
    ///
    /// `watch` is called with `true` before each sum, that of the gradients included, and with `false` after it unless it
    /// failed; it must not panic.
    /// Errors: if a peer is lost.
    pub fn all_reduce_sum_differentiable(&self, tensor: &Tensor, watch: extern "C" fn(bool)) -> Result<Tensor> {
        // SAFETY: live handles; `out` is written on success. The graph keeps a reference to the group.
        new_tensor(|out| unsafe { fnet_group_all_reduce_sum(self.raw, pointer(tensor), watch, out) })
    }

    /// Sets the deadline of collectives that are given none: those of the [`Reducer`](super::Reducer) and of
    /// [`ProcessGroup::all_reduce_sum_differentiable`].
    pub fn set_timeout(&self, timeout: Duration) -> Result<()> {
        // SAFETY: live handle.
        check(unsafe { fnet_group_set_timeout(self.raw, milliseconds(timeout)) })
    }

    /// Ends the group in good order, when all ranks are done: what tensors on the CPU travel by. What NCCL has opened stays
    /// until the end of the process.
    /// Errors: if a running collective fails.
    pub fn shutdown(&self) -> Result<()> {
        // SAFETY: live handle.
        check(unsafe { fnet_group_shutdown(self.raw) })
    }

    /// See [`Aborter::abort`].
    /// Errors: as there.
    pub fn abort(&self, deadline: Duration) -> Result<()> {
        self.aborter()?.abort(deadline)
    }

    /// What can break off the group's collectives from another thread, while this one waits in one.
    pub fn aborter(&self) -> Result<Aborter> {
        // SAFETY: live handle and out-pointer.
        let raw = new_object(|out| unsafe { fnet_group_clone(self.raw, out) })?;
        let connections = Arc::clone(&self.connections);
        Ok(Aborter { handle: Aborted(raw), cuda_device: self.cuda_device, connections })
    }

    /// The device whose tensors travel by NCCL.
    pub fn cuda_device(&self) -> Option<Device> {
        self.cuda_device.map(Device::Cuda)
    }

    pub(super) fn raw(&self) -> *mut RawGroup {
        self.raw
    }

    /// Takes over a group of the C++ side.
    pub(super) fn from_raw(raw: *mut RawGroup, rank: usize, size: usize) -> Self {
        Self { raw, rank, size, cuda_device: None, connections: Arc::default() }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: the handle is live and freed once; reducers and graphs hold references of their own.
        // A failure to close a connection has nobody left to tell.
        let _ = check(unsafe { fnet_group_free(self.raw) });
    }
}

/// Watches the collectives of a group and breaks them off, from any thread.
///
/// Its handle is never freed: Gloo's destructor, which runs with the last handle, would wait for a hung collective.
pub struct Aborter {
    handle: Aborted,
    cuda_device: Option<usize>,
    connections: Arc<Connections>,
}

impl Aborter {
    /// Breaks off what runs on the CPU, after a peer was lost. What a hung collective holds is given up, not waited for; the
    /// group must not be used any more.
    /// Errors: if the backend does not let go within `deadline`; the process should then end.
    pub fn abort(&self, deadline: Duration) -> Result<()> {
        let handle = self.handle;
        self.connections.cut();
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: a live handle, for it is never freed.
            let result = check(unsafe { fnet_group_abort(handle.raw(), false) });
            // The receiver is gone only if the deadline has passed.
            let _ = sender.send(result);
        });
        receiver.recv_timeout(deadline).unwrap_or_else(|_| {
            let message = format!("the process group did not stop within {deadline:?} of being aborted");
            Err(Error::new(ErrorKind::Collective, message))
        })
    }

    /// Whether tensors on a CUDA device travel by this group.
    pub fn is_on_cuda(&self) -> bool {
        self.cuda_device.is_some()
    }

    /// Breaks off what runs on the CUDA device. NCCL's abort has hung in the field, so it may never return; and it may free
    /// memory that a kernel of another rank still uses, so it is the last resort.
    /// Errors: if NCCL fails.
    pub fn abort_cuda(&self) -> Result<()> {
        // SAFETY: a live handle, for it is never freed.
        check(unsafe { fnet_group_abort(self.handle.raw(), true) })
    }

    /// What NCCL has found to be wrong by itself, in words, if anything.
    /// Errors: if the backend cannot tell.
    pub fn cuda_error(&self) -> Result<Option<&'static str>> {
        let mut found = 0;
        // SAFETY: a live handle, for it is never freed; the out-pointer is valid for the call.
        check(unsafe { fnet_group_cuda_error(self.handle.raw(), &raw mut found) })?;
        Ok(match found {
            0 => None,
            1 => Some("a collective that did not end in time"),
            3 => Some("an error of another rank"),
            _ => Some("an error of the connection to another rank"),
        })
    }
}

/// A handle on its way to the thread that aborts the group.
#[derive(Clone, Copy)]
struct Aborted(*mut RawGroup);

// SAFETY: c10d's abort is made to be called while another thread waits in a collective.
unsafe impl Send for Aborted {}
// SAFETY: as above; the handle itself is only read.
unsafe impl Sync for Aborted {}

impl Aborted {
    /// A method, so that a closure captures the whole handle.
    fn raw(self) -> *mut RawGroup {
        self.0
    }
}

/// A running collective.
#[must_use = "the tensors may be used only after the collective is waited for"]
pub struct Work<'a> {
    raw: *mut RawWork,
    /// The group and the tensors that the collective uses.
    _borrowed: PhantomData<&'a Tensor>,
}

impl Work<'_> {
    fn start(call: impl FnOnce(*mut *mut RawWork) -> *mut RawError) -> Result<Self> {
        Ok(Self { raw: new_object(call)?, _borrowed: PhantomData })
    }

    /// Waits for the end of the collective.
    pub fn wait(self, timeout: Duration) -> Result<()> {
        // SAFETY: live handle.
        check(unsafe { fnet_work_wait(self.raw, milliseconds(timeout)) })
    }

    /// Has the current stream of the tensors' CUDA device wait for the collective; this thread goes on. A tensor on the CPU is
    /// waited for without a deadline of its own.
    /// Errors: if it has failed already.
    pub fn wait_on_stream(self) -> Result<()> {
        // SAFETY: live handle; 0 is c10d's word for no deadline.
        check(unsafe { fnet_work_wait(self.raw, 0) })
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is live and freed once; a running collective holds references of its own.
        let _ = check(unsafe { fnet_work_free(self.raw) });
    }
}

pub(super) fn to_int(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
