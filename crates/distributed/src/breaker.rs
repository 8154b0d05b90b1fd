//! Aborts collectives when another rank is lost.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use torch_ext::cuda;
use torch_ext::distributed::Aborter;

use fnet_common::{Error, Result};
use fnet_protocol::message::Operation;
use fnet_protocol::status;

/// How long collectives of tensors on the CPU may take to end after an abort.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a rank may take to respond before the collectives of its GPU are aborted, too.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often NCCL is polled for errors.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

type Abort = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Aborts collectives, once, on a separate thread.
///
/// Waits for collectives of tensors on the CPU fail with an error, and so does every wait for a GPU ([`cuda::break_off`]).
/// The GPU's collectives continue: the rank copies its state beside them and ends its process. They are aborted only if the
/// rank does not respond because it blocks in some function of CUDA: NCCL's abort may hang, and it may free memory that
/// kernels of other ranks still use.
pub(super) struct Breaker {
    host: Abort,
    device: Option<Abort>,
    timeout: Duration,
    stage: Mutex<Stage>,
    changed: Condvar,
}

#[derive(Default)]
struct Stage {
    begun: bool,
    /// The reason, if this rank found it.
    why: Option<String>,
    /// The result of aborting the collectives of tensors on the CPU.
    host: Option<Result<(), String>>,
    /// The rank has responded.
    answered: bool,
}

impl Breaker {
    /// For a job of one rank, which has no collectives.
    pub fn of_one_rank() -> Arc<Self> {
        Arc::new(Self::new(Box::new(|| Ok(())), None, Duration::ZERO))
    }

    /// For the collectives of a group. Those of a GPU are polled because NCCL reports errors only when asked.
    pub fn of(aborter: Aborter) -> Arc<Self> {
        let aborter = Arc::new(aborter);
        let own = Arc::clone(&aborter);
        let host = move || own.abort(ABORT_TIMEOUT).map_err(|error| error.message().to_owned());
        if !aborter.is_on_cuda() {
            return Arc::new(Self::new(Box::new(host), None, RESPONSE_TIMEOUT));
        }
        let own = Arc::clone(&aborter);
        let device = move || own.abort_cuda().map_err(|error| error.message().to_owned());
        let breaker = Arc::new(Self::new(Box::new(host), Some(Box::new(device)), RESPONSE_TIMEOUT));
        let watched = Arc::downgrade(&breaker);
        let ask = move || aborter.cuda_error().map_err(|error| error.message().to_owned());
        let spawned =
            thread::Builder::new().name("nccl-watch".into()).spawn(move || watch(&watched, WATCH_INTERVAL, ask));
        if let Err(error) = spawned {
            log::warn!("NCCL is not polled for errors because no thread could be started: {error}");
        }
        breaker
    }

    fn new(host: Abort, device: Option<Abort>, timeout: Duration) -> Self {
        Self { host, device, timeout, stage: Mutex::default(), changed: Condvar::new() }
    }

    /// Begins the abort; does not block. Waits that fail because of it report `why`.
    pub fn begin(self: &Arc<Self>, why: Option<String>) {
        {
            let mut stage = self.lock();
            if stage.begun {
                return;
            }
            (stage.begun, stage.why) = (true, why.clone());
        }
        if self.device.is_some() {
            cuda::break_off(why.as_deref().unwrap_or("aborted because another rank is lost"));
        }
        let own = Arc::clone(self);
        let spawned = thread::Builder::new().name("abort".into()).spawn(move || own.abort_collectives());
        if let Err(error) = spawned {
            self.set_host_result(Err(format!("no thread could be started to abort collectives: {error}")));
        }
    }

    fn abort_collectives(&self) {
        let done = (self.host)();
        self.set_host_result(done);
        let Some(device) = &self.device else { return };
        let waiting = self.changed.wait_timeout_while(self.lock(), self.timeout, |stage| !stage.answered);
        let answered = waiting.unwrap_or_else(PoisonError::into_inner).0.answered;
        if !answered {
            log::warn!("this rank does not respond to the abort; the collectives of its GPU are aborted");
            if let Err(error) = device() {
                log::warn!("NCCL's abort: {error}");
            }
        }
    }

    fn set_host_result(&self, done: Result<(), String>) {
        self.lock().host = Some(done);
        self.changed.notify_all();
    }

    /// Whether the abort has begun.
    pub fn has_begun(&self) -> bool {
        self.lock().begun
    }

    /// The reason for the abort, if this rank found it.
    pub fn why(&self) -> Option<String> {
        self.lock().why.clone()
    }

    /// Begins the abort. Called by the working thread, which then waits for no collective any more.
    pub fn answer(self: &Arc<Self>) {
        self.begin(None);
        self.lock().answered = true;
        self.changed.notify_all();
    }

    /// Like [`Breaker::answer`], and waits until no collective of tensors on the CPU runs any more.
    /// Errors: if they do not end before a deadline.
    pub fn abort(self: &Arc<Self>) -> Result<()> {
        self.answer();
        // The abort has a deadline itself.
        let waiting = self
            .changed
            .wait_timeout_while(self.lock(), ABORT_TIMEOUT + RESPONSE_TIMEOUT, |stage| stage.host.is_none());
        let stage = waiting.unwrap_or_else(PoisonError::into_inner).0;
        stage.host.clone().unwrap_or_else(|| Err("the collectives did not end".into())).map_err(Error::distributed)
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Polls for an error every `pause` and aborts if there is one, until the job ends or is aborted.
fn watch(breaker: &Weak<Breaker>, pause: Duration, ask: impl Fn() -> Result<Option<&'static str>, String>) {
    loop {
        thread::sleep(pause);
        let Some(breaker) = breaker.upgrade().filter(|breaker| !breaker.has_begun()) else { return };
        match ask() {
            Ok(None) => {}
            Ok(Some(what)) => {
                let at = status::page().read();
                let waits = match at.operation {
                    Operation::None => String::new(),
                    operation => format!(", and waits in {}", operation.name()),
                };
                let phase = at.phase.name();
                return breaker
                    .begin(Some(format!("NCCL reports {what}; this rank is in {phase} of step {}{waits}", at.step)));
            }
            Err(error) => return log::debug!("NCCL is not polled for errors: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn block_forever() -> Result<(), String> {
        thread::sleep(LONG);
        Ok(())
    }

    /// A breaker that counts the calls of each abort.
    fn counting(timeout: Duration) -> (Arc<[AtomicUsize; 2]>, Arc<Breaker>) {
        let calls: Arc<[AtomicUsize; 2]> = Arc::default();
        let count = |which: usize| -> Abort {
            let calls = Arc::clone(&calls);
            Box::new(move || {
                calls[which].fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        let breaker = Arc::new(Breaker::new(count(0), Some(count(1)), timeout));
        (calls, breaker)
    }

    fn until(what: impl Fn() -> bool) {
        while !what() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_gpu_abort_that_never_returns_blocks_nobody() {
        let (sender, called) = mpsc::channel();
        let device: Abort = Box::new(move || {
            let _ = sender.send(());
            block_forever()
        });
        let breaker = Arc::new(Breaker::new(Box::new(|| Ok(())), Some(device), Duration::ZERO));
        breaker.begin(None);
        called.recv_timeout(LONG).unwrap();
        breaker.abort().unwrap();
        breaker.abort().unwrap();
    }

    #[test]
    fn reporting_a_lost_peer_does_not_block_even_on_the_cpus_collectives() {
        let breaker = Arc::new(Breaker::new(Box::new(block_forever), None, LONG));
        breaker.begin(None);
        assert!(breaker.has_begun());
    }

    #[test]
    fn a_rank_that_responds_does_not_abort_the_collectives_of_its_gpu() {
        let (calls, breaker) = counting(LONG);
        breaker.begin(None);
        until(|| calls[0].load(Ordering::Relaxed) == 1);
        breaker.abort().unwrap();
        until(|| Arc::strong_count(&breaker) == 1);
        assert_eq!(calls[1].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_rank_that_does_not_respond_has_them_aborted_once() {
        let (calls, breaker) = counting(Duration::ZERO);
        breaker.begin(None);
        breaker.begin(None);
        until(|| Arc::strong_count(&breaker) == 1);
        assert_eq!([&calls[0], &calls[1]].map(|count| count.load(Ordering::Relaxed)), [1, 1]);
    }

    #[test]
    fn collectives_of_the_gpu_are_aborted_even_if_those_of_the_cpu_cannot_be() {
        let (sender, called) = mpsc::channel();
        let device: Abort = Box::new(move || sender.send(()).map_err(|error| error.to_string()));
        let breaker = Arc::new(Breaker::new(Box::new(|| Err("hangs".into())), Some(device), Duration::ZERO));
        breaker.begin(None);
        called.recv_timeout(LONG).unwrap();
        assert!(breaker.abort().unwrap_err().to_string().contains("hangs"));
    }

    #[test]
    fn an_error_of_nccl_aborts_the_job_and_is_reported_with_the_operation() {
        let (calls, breaker) = counting(LONG);
        let asked = AtomicUsize::new(0);
        let ask = || Ok((asked.fetch_add(1, Ordering::Relaxed) == 2).then_some("an error of the connection"));
        watch(&Arc::downgrade(&breaker), Duration::ZERO, ask);
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        until(|| calls[0].load(Ordering::Relaxed) == 1);
        let why = breaker.why().unwrap();
        assert!(why.starts_with("NCCL reports an error of the connection; this rank is in "), "{why}");
        // No more polling after the abort.
        watch(&Arc::downgrade(&breaker), Duration::ZERO, || panic!("asked again"));
        watch(&Weak::new(), Duration::ZERO, || panic!("asked after the end"));
    }

    #[test]
    fn a_backend_that_cannot_report_errors_is_not_polled_again() {
        let (_, breaker) = counting(LONG);
        let asked = AtomicUsize::new(0);
        watch(&Arc::downgrade(&breaker), Duration::ZERO, || {
            asked.fetch_add(1, Ordering::Relaxed);
            Err("does not support getError".into())
        });
        assert_eq!((asked.load(Ordering::Relaxed), breaker.has_begun()), (1, false));
    }
}
