//! Requests to the VMM: sends each with an id, and gives the answer with that id to whoever waits for it.
//! [`super::Vm`] sends them, [`super::monitor`] receives the answers. The VMM is not trusted: a request has a
//! deadline, the number of requests that wait is bounded, and an answer that nobody waits for is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::control::{
    Answer, Attachments, Channel, DeviceConfig, Error as ChannelError, ErrorText, Request, ToVmm,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::REQUEST_DEADLINE;

/// Most requests that wait for their answers.
const MAX_PENDING: usize = 16;
/// Most dropped answers that are logged in a VM's life.
const MAX_LOGGED: u32 = 8;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the VMM refused: {0}")]
    Refused(ErrorText),
    #[error("the VMM did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("the VM has ended")]
    Ended,
    #[error("{MAX_PENDING} requests to the VMM are waiting already")]
    TooMany,
    #[error("the VMM's answer belongs to another request")]
    WrongAnswer,
    #[error("sending to the VMM: {0}")]
    Send(#[from] ChannelError),
}

type Result<T> = std::result::Result<T, RequestError>;
type Waiters = BTreeMap<u64, oneshot::Sender<std::result::Result<Answer, ErrorText>>>;

/// The requests of one VM that wait for their answers.
#[derive(Debug)]
pub struct Requests {
    channel: Arc<AsyncFd<Channel>>,
    // Never locked across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    waiters: Waiters,
    has_ended: bool,
    dropped_answers: u32,
}

impl Requests {
    pub(super) fn new(channel: Arc<AsyncFd<Channel>>) -> Self {
        Self {
            channel,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `request` now. The future waits for the answer, until `deadline` has passed since its first
    /// poll.
    pub fn send(
        self: &Arc<Self>,
        request: Request,
        deadline: Duration,
    ) -> impl Future<Output = Result<Answer>> + Send + use<> + 'static {
        self.send_with(request, &Attachments::default(), deadline)
    }

    /// As [`Requests::send`], with the descriptors that `request` names.
    pub fn send_with(
        self: &Arc<Self>,
        request: Request,
        attachments: &Attachments<'_>,
        deadline: Duration,
    ) -> impl Future<Output = Result<Answer>> + Send + use<> + 'static {
        let sent = self.send_now(request, attachments);
        async move {
            let mut pending = sent?;
            match tokio::time::timeout(deadline, &mut pending.answer).await {
                Ok(Ok(answer)) => answer.map_err(RequestError::Refused),
                // The sender was dropped by `end`.
                Ok(Err(_)) => Err(RequestError::Ended),
                Err(_elapsed) => Err(RequestError::TimedOut(deadline)),
            }
        }
    }

    /// Asks the VMM now to add `device`, whose descriptors are `attachments`. The future is its slot.
    pub fn attach(
        self: &Arc<Self>,
        device: DeviceConfig,
        attachments: &Attachments<'_>,
    ) -> impl Future<Output = Result<u8>> + Send + use<> + 'static {
        let answer = self.send_with(Request::Attach { device }, attachments, REQUEST_DEADLINE);
        async move {
            match answer.await? {
                Answer::Attached { slot } => Ok(slot),
                Answer::Done | Answer::Exits(_) | Answer::Memory { .. } => Err(RequestError::WrongAnswer),
            }
        }
    }

    /// As [`Requests::send`], for a request whose only answer is [`Answer::Done`].
    pub fn carry_out(
        self: &Arc<Self>,
        request: Request,
    ) -> impl Future<Output = Result<()>> + Send + use<> + 'static {
        let answer = self.send(request, REQUEST_DEADLINE);
        async move {
            match answer.await? {
                Answer::Done => Ok(()),
                Answer::Attached { .. } | Answer::Exits(_) | Answer::Memory { .. } => {
                    Err(RequestError::WrongAnswer)
                }
            }
        }
    }

    fn send_now(self: &Arc<Self>, request: Request, attachments: &Attachments<'_>) -> Result<Pending> {
        let (sender, answer) = oneshot::channel();
        let id = self.state().add(sender)?;
        // Removes the id again if sending fails.
        let pending = Pending {
            requests: Arc::clone(self),
            id,
            answer,
        };
        self.channel
            .get_ref()
            .send(&ToVmm::Request { id, request }, &attachments.as_raw_fds())?;
        Ok(pending)
    }

    /// Takes the answer to request `id`. Returns false if nobody waits for it: the deadline has passed, or
    /// the VMM was never asked.
    pub(super) fn answer(&self, id: u64, answer: std::result::Result<Answer, ErrorText>) -> bool {
        let mut state = self.state();
        if let Some(waiter) = state.waiters.remove(&id) {
            // Fails if the request was given up in this moment.
            let _ = waiter.send(answer);
            return true;
        }
        if state.dropped_answers < MAX_LOGGED {
            state.dropped_answers += 1;
            crate::log::warn(format_args!("dropping an answer of the VMM to request {id}"));
        }
        false
    }

    /// The VM has ended: fails all requests that wait, and those to come.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.has_ended = true;
        state.waiters.clear();
    }
}

impl State {
    fn add(&mut self, waiter: oneshot::Sender<std::result::Result<Answer, ErrorText>>) -> Result<u64> {
        if self.has_ended {
            return Err(RequestError::Ended);
        }
        if self.waiters.len() >= MAX_PENDING {
            return Err(RequestError::TooMany);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.waiters.insert(id, waiter);
        Ok(id)
    }
}

/// A request that waits for its answer. Dropping it gives it up.
#[derive(Debug)]
struct Pending {
    requests: Arc<Requests>,
    id: u64,
    answer: oneshot::Receiver<std::result::Result<Answer, ErrorText>>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.requests.state().waiters.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocol::control::socket_pair;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    fn pair() -> (Channel, Arc<Requests>) {
        let (ours, vmm) = socket_pair().unwrap();
        let channel = super::super::nonblocking(Channel::new(ours)).unwrap();
        (Channel::new(vmm), Arc::new(Requests::new(Arc::new(channel))))
    }

    /// Receives a request in the VMM's place; returns its id.
    fn received(vmm: &Channel) -> u64 {
        match vmm.receive::<ToVmm>().unwrap().0 {
            ToVmm::Request { id, .. } => id,
            other @ ToVmm::Configure(_) => panic!("{other:?}"),
        }
    }

    fn exits(count: u64) -> Answer {
        Answer::Exits([("kind".to_owned(), count)].into())
    }

    #[tokio::test]
    async fn each_request_gets_its_own_answer() {
        let (vmm, requests) = pair();
        let (a, b) = (
            requests.send(Request::Exits, LONG),
            requests.send(Request::Exits, LONG),
        );
        let (id_a, id_b) = (received(&vmm), received(&vmm));
        assert_ne!(id_a, id_b);
        assert!(requests.answer(id_b, Ok(exits(2))));
        assert!(requests.answer(id_a, Err(ErrorText::new("no"))));
        assert!(!requests.answer(id_a, Ok(exits(1))), "answered twice");
        assert_eq!(b.await.unwrap(), exits(2));
        let refused = a.await.unwrap_err();
        assert!(
            matches!(&refused, RequestError::Refused(text) if *text == ErrorText::new("no")),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn a_late_answer_is_dropped_and_the_next_request_is_not_confused_by_it() {
        let (vmm, requests) = pair();
        let late = requests.send(Request::Exits, SHORT).await.unwrap_err();
        assert!(matches!(late, RequestError::TimedOut(SHORT)), "{late}");
        let next = requests.send(Request::Exits, LONG);
        let (late_id, next_id) = (received(&vmm), received(&vmm));
        assert!(!requests.answer(late_id, Ok(exits(1))));
        for never_asked in [u64::MAX, next_id + 1] {
            assert!(!requests.answer(never_asked, Ok(exits(3))));
        }
        assert!(requests.answer(next_id, Ok(exits(2))));
        assert_eq!(next.await.unwrap(), exits(2));
        assert!(requests.state().waiters.is_empty());
    }

    #[tokio::test]
    async fn requests_that_wait_are_bounded_and_given_up_with_their_future() {
        let (_vmm, requests) = pair();
        let pending: Vec<_> = (0..MAX_PENDING)
            .map(|_| requests.send(Request::Exits, LONG))
            .collect();
        let one_more = requests.send(Request::Exits, LONG).await.unwrap_err();
        assert!(matches!(one_more, RequestError::TooMany), "{one_more}");
        drop(pending);
        assert!(requests.state().waiters.is_empty());
    }

    #[tokio::test]
    async fn the_vm_s_end_fails_all_requests() {
        let (vmm, requests) = pair();
        let pending = requests.send(Request::Exits, LONG);
        requests.end();
        drop(vmm);
        for request in [pending.await, requests.send(Request::Exits, LONG).await] {
            assert!(matches!(request, Err(RequestError::Ended)), "{request:?}");
        }
    }

    #[tokio::test]
    async fn a_request_that_can_t_be_sent_does_not_wait() {
        let (vmm, requests) = pair();
        drop(vmm);
        let error = requests.send(Request::Exits, LONG).await.unwrap_err();
        assert!(matches!(error, RequestError::Send(_)), "{error}");
        assert!(requests.state().waiters.is_empty());
    }

    #[tokio::test]
    async fn dropped_answers_are_logged_only_a_few_times() {
        let (_vmm, requests) = pair();
        for id in 0..1000 {
            assert!(!requests.answer(id, Ok(exits(1))));
        }
        assert_eq!(requests.state().dropped_answers, MAX_LOGGED);
    }
}
