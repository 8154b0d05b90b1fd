//! Work on files, on a thread of its own: a folder that does not answer must stop neither heartbeats nor signals.

use std::time::Duration;

use crate::error::{Error, Result};

/// The result of `work`. `doing` says what it is, such as `reading work_dirs/cfg`.
/// Errors: there is none in time; the thread is left behind.
pub async fn within<T: Send + 'static>(
    time: Duration,
    doing: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(time, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(panic)) => Err(Error::bug(format!("{doing}: {panic}"))),
        Err(_) => {
            let seconds = time.as_secs_f64();
            Err(Error::environment(format!("{doing}: the disk or network drive does not answer within {seconds} s")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_does_not_answer_is_named_while_other_work_goes_on() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let reading =
            within(Duration::from_millis(300), "reading work_dirs/cfg".into(), move || released.recv().is_ok());
        let mut beats = 0;
        let error = runtime.block_on(async {
            tokio::pin!(reading);
            loop {
                tokio::select! {
                    done = &mut reading => return done.unwrap_err(),
                    () = tokio::time::sleep(Duration::from_millis(10)) => beats += 1,
                }
            }
        });
        assert_eq!((error.code, beats > 0), (fnet_protocol::exit::ENVIRONMENT, true));
        assert!(error.message().starts_with("reading work_dirs/cfg: the disk"), "{error}");
        drop(release);
    }
}
