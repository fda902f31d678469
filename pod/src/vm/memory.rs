//! Plugs memory into a VM, and unplugs it. The VM boots without virtio-mem, which would cost each boot at
//! least 70 VM exits; the device is attached when memory is plugged in for the first time. `sandbox/resize`
//! calls it, one request at a time; never decides how much memory a VM gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nacre_protocol::control::{Attachments, DeviceConfig, Request};

use super::requests::{RequestError, Requests};

/// Plugs memory into a VM. Its clones control the same VM.
#[derive(Debug, Clone)]
pub struct MemoryControl {
    requests: Arc<Requests>,
    /// The VM has virtio-mem.
    is_attached: Arc<AtomicBool>,
}

impl MemoryControl {
    /// For a VM without virtio-mem.
    pub(super) fn new(requests: Arc<Requests>) -> Self {
        Self {
            requests,
            is_attached: Arc::default(),
        }
    }

    /// Sets how much memory is to be plugged in besides that at boot, MiB, of `max_mib` that can ever be. The
    /// guest follows later; the first time, it must scan its PCI bus for the device.
    ///
    /// # Errors
    /// [`RequestError`] with the VMM's reason.
    pub async fn plug(&self, mib: u32, max_mib: u32) -> Result<(), RequestError> {
        if !self.is_attached.load(Ordering::Relaxed) {
            self.attach(max_mib).await?;
        }
        self.requests.carry_out(Request::PlugMemory { mib }).await
    }

    async fn attach(&self, max_mib: u32) -> Result<(), RequestError> {
        let device = DeviceConfig::Mem { max_mib };
        let attached = self.requests.attach(device, &Attachments::default()).await;
        // The VMM carries out a request even if its answer comes too late, and refuses a second device.
        if matches!(attached, Ok(_) | Err(RequestError::TimedOut(_))) {
            self.is_attached.store(true, Ordering::Relaxed);
        }
        attached.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use nacre_protocol::control::{Answer, Channel, ErrorText, ToVmm, socket_pair};

    use super::*;

    /// Plugs `sizes` one after another into a VM whose VMM answers by `answers`. Returns the results and the
    /// requests.
    async fn plug(
        sizes: &[u32],
        answers: Vec<Result<Answer, ErrorText>>,
    ) -> (Vec<Result<(), RequestError>>, Vec<Request>) {
        let (ours, vmm) = socket_pair().unwrap();
        let channel = super::super::nonblocking(Channel::new(ours)).unwrap();
        let requests = Arc::new(Requests::new(Arc::new(channel)));
        let memory = MemoryControl::new(Arc::clone(&requests));
        let vmm = tokio::task::spawn_blocking(move || {
            let vmm = Channel::new(vmm);
            answers
                .into_iter()
                .map(|answer| {
                    let ToVmm::Request { id, request } = vmm.receive::<ToVmm>().unwrap().0 else {
                        panic!("not a request")
                    };
                    requests.answer(id, answer);
                    request
                })
                .collect()
        });
        let mut results = Vec::new();
        for mib in sizes {
            results.push(memory.clone().plug(*mib, 1024).await);
        }
        (results, vmm.await.unwrap())
    }

    #[tokio::test]
    async fn the_device_is_attached_before_the_first_memory_only() {
        let answers = vec![
            Ok(Answer::Attached { slot: 4 }),
            Ok(Answer::Done),
            Ok(Answer::Done),
        ];
        let (results, requests) = plug(&[128, 256], answers).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        let device = DeviceConfig::Mem { max_mib: 1024 };
        assert_eq!(
            requests,
            [
                Request::Attach { device },
                Request::PlugMemory { mib: 128 },
                Request::PlugMemory { mib: 256 },
            ]
        );
    }

    #[tokio::test]
    async fn a_device_that_was_refused_is_asked_for_again() {
        let refused = Err(ErrorText::new("no slot is empty"));
        let answers = vec![refused, Ok(Answer::Attached { slot: 4 }), Ok(Answer::Done)];
        let (results, requests) = plug(&[128, 128], answers).await;
        assert!(
            matches!(results.as_slice(), [Err(RequestError::Refused(_)), Ok(())]),
            "{results:?}"
        );
        assert!(
            matches!(
                requests.as_slice(),
                [
                    Request::Attach { .. },
                    Request::Attach { .. },
                    Request::PlugMemory { mib: 128 }
                ]
            ),
            "{requests:?}"
        );
    }
}
