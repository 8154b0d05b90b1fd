//! Ends what waits for other ranks, once one of them is lost.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use torch_ext::cuda;
use torch_ext::distributed::Aborter;

use fnet_common::{Error, Result};
use fnet_protocol::message::Operation;
use fnet_protocol::status;

/// How long collectives of tensors on the CPU may take to let go of what they hold.
const LET_GO: Duration = Duration::from_secs(10);
/// How long a rank may take to come back from what it does, until the collectives of its GPU are broken off too.
const RETURN: Duration = Duration::from_secs(5);
/// How often NCCL is asked whether it has found an error.
const WATCH: Duration = Duration::from_secs(1);

type Abort = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Breaks off collectives, once, on a thread of its own.
///
/// Those of tensors on the CPU end with an error for whoever waits in them, and so does every wait for a GPU
/// ([`cuda::break_off`]), whose collectives go on: the rank copies its state beside them and ends its process. They are
/// broken off only if the rank does not come back, from some function of CUDA that waits: NCCL's abort may hang, and it may
/// take memory from under the kernels of other ranks.
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
    /// Why, where this rank is the one that found it.
    why: Option<String>,
    /// How the collectives of tensors on the CPU have ended.
    host: Option<Result<(), String>>,
    /// The rank has come back.
    answered: bool,
}

impl Breaker {
    /// For a job of one rank, which has no collectives.
    pub fn of_one_rank() -> Arc<Self> {
        Arc::new(Self::new(Box::new(|| Ok(())), None, Duration::ZERO))
    }

    /// For the collectives of a group. Those of a GPU are watched: NCCL tells of an error only whoever asks.
    pub fn of(aborter: Aborter) -> Arc<Self> {
        let aborter = Arc::new(aborter);
        let own = Arc::clone(&aborter);
        let host = move || own.abort(LET_GO).map_err(|error| error.message().to_owned());
        if !aborter.is_on_cuda() {
            return Arc::new(Self::new(Box::new(host), None, RETURN));
        }
        let own = Arc::clone(&aborter);
        let device = move || own.abort_cuda().map_err(|error| error.message().to_owned());
        let breaker = Arc::new(Self::new(Box::new(host), Some(Box::new(device)), RETURN));
        let watched = Arc::downgrade(&breaker);
        let ask = move || aborter.cuda_error().map_err(|error| error.message().to_owned());
        let spawned = thread::Builder::new().name("nccl-watch".into()).spawn(move || watch(&watched, WATCH, ask));
        if let Err(error) = spawned {
            log::warn!("NCCL is not watched, for the system gives no thread: {error}");
        }
        breaker
    }

    fn new(host: Abort, device: Option<Abort>, timeout: Duration) -> Self {
        Self { host, device, timeout, stage: Mutex::default(), changed: Condvar::new() }
    }

    /// Begins to break off; does not wait. `why` is told by those who wait.
    pub fn begin(self: &Arc<Self>, why: Option<String>) {
        {
            let mut stage = self.lock();
            if stage.begun {
                return;
            }
            (stage.begun, stage.why) = (true, why.clone());
        }
        if self.device.is_some() {
            cuda::break_off(why.as_deref().unwrap_or("broken off, for another rank is lost"));
        }
        let own = Arc::clone(self);
        let spawned = thread::Builder::new().name("break-off".into()).spawn(move || own.break_off());
        if let Err(error) = spawned {
            self.let_go(Err(format!("the system gives no thread to break collectives off: {error}")));
        }
    }

    fn break_off(&self) {
        let done = (self.host)();
        self.let_go(done);
        let Some(device) = &self.device else { return };
        let waiting = self.changed.wait_timeout_while(self.lock(), self.timeout, |stage| !stage.answered);
        let answered = waiting.unwrap_or_else(PoisonError::into_inner).0.answered;
        if !answered {
            log::warn!("this rank has not come back from what it does; the collectives of its GPU are broken off");
            if let Err(error) = device() {
                log::warn!("NCCL's abort: {error}");
            }
        }
    }

    fn let_go(&self, done: Result<(), String>) {
        self.lock().host = Some(done);
        self.changed.notify_all();
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.lock().begun
    }

    /// Why it was begun, where this rank found the reason by itself.
    pub fn why(&self) -> Option<String> {
        self.lock().why.clone()
    }

    /// Begins to break off, by the thread that works: it waits for nothing any more.
    pub fn answer(self: &Arc<Self>) {
        self.begin(None);
        self.lock().answered = true;
        self.changed.notify_all();
    }

    /// The same, and waits until no collective of tensors on the CPU runs any more.
    ///
    /// # Errors
    /// If that is not so before a deadline.
    pub fn abort(self: &Arc<Self>) -> Result<()> {
        self.answer();
        // The abort has a deadline itself.
        let waiting = self.changed.wait_timeout_while(self.lock(), LET_GO + RETURN, |stage| stage.host.is_none());
        let stage = waiting.unwrap_or_else(PoisonError::into_inner).0;
        stage.host.clone().unwrap_or_else(|| Err("the collectives do not end".into())).map_err(Error::distributed)
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks every `pause` whether there is an error, and breaks off if there is one, until the job is over or broken off.
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
            Err(error) => return log::debug!("NCCL is not watched: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn for_ever() -> Result<(), String> {
        thread::sleep(LONG);
        Ok(())
    }

    /// How often each abort was called, and the breaker.
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
    fn an_abort_of_the_gpus_collectives_that_never_returns_holds_nobody_up() {
        let (sender, called) = mpsc::channel();
        let device: Abort = Box::new(move || {
            let _ = sender.send(());
            for_ever()
        });
        let breaker = Arc::new(Breaker::new(Box::new(|| Ok(())), Some(device), Duration::ZERO));
        breaker.begin(None);
        called.recv_timeout(LONG).unwrap();
        breaker.abort().unwrap();
        breaker.abort().unwrap();
    }

    #[test]
    fn who_tells_of_a_lost_peer_does_not_wait_even_for_the_cpus_collectives() {
        let breaker = Arc::new(Breaker::new(Box::new(for_ever), None, LONG));
        breaker.begin(None);
        assert!(breaker.has_begun());
    }

    #[test]
    fn a_rank_that_comes_back_leaves_the_collectives_of_its_gpu_alone() {
        let (calls, breaker) = counting(LONG);
        breaker.begin(None);
        until(|| calls[0].load(Ordering::Relaxed) == 1);
        breaker.abort().unwrap();
        until(|| Arc::strong_count(&breaker) == 1);
        assert_eq!(calls[1].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_rank_that_does_not_come_back_has_them_broken_off_once() {
        let (calls, breaker) = counting(Duration::ZERO);
        breaker.begin(None);
        breaker.begin(None);
        until(|| Arc::strong_count(&breaker) == 1);
        assert_eq!([&calls[0], &calls[1]].map(|count| count.load(Ordering::Relaxed)), [1, 1]);
    }

    #[test]
    fn collectives_of_the_gpu_are_broken_off_though_those_of_the_cpu_could_not_be() {
        let (sender, called) = mpsc::channel();
        let device: Abort = Box::new(move || sender.send(()).map_err(|error| error.to_string()));
        let breaker = Arc::new(Breaker::new(Box::new(|| Err("hangs".into())), Some(device), Duration::ZERO));
        breaker.begin(None);
        called.recv_timeout(LONG).unwrap();
        assert!(breaker.abort().unwrap_err().to_string().contains("hangs"));
    }

    #[test]
    fn an_error_that_nccl_found_breaks_the_job_off_and_is_told_with_the_operation() {
        let (calls, breaker) = counting(LONG);
        let asked = AtomicUsize::new(0);
        let ask = || Ok((asked.fetch_add(1, Ordering::Relaxed) == 2).then_some("an error of the connection"));
        watch(&Arc::downgrade(&breaker), Duration::ZERO, ask);
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        until(|| calls[0].load(Ordering::Relaxed) == 1);
        let why = breaker.why().unwrap();
        assert!(why.starts_with("NCCL reports an error of the connection; this rank is in "), "{why}");
        // Nobody asks any more.
        watch(&Arc::downgrade(&breaker), Duration::ZERO, || panic!("asked again"));
        watch(&Weak::new(), Duration::ZERO, || panic!("asked after the end"));
    }

    #[test]
    fn a_backend_that_cannot_tell_is_not_asked_again() {
        let (_, breaker) = counting(LONG);
        let asked = AtomicUsize::new(0);
        watch(&Arc::downgrade(&breaker), Duration::ZERO, || {
            asked.fetch_add(1, Ordering::Relaxed);
            Err("does not support getError".into())
        });
        assert_eq!((asked.load(Ordering::Relaxed), breaker.has_begun()), (1, false));
    }
}
