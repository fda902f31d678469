//! Requests to a VMM whose VM runs, and its answers. The engine gives each request an id; the VMM answers
//! each request exactly once, in the order in which it received them. Pure.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::DeviceConfig;
use crate::text::printable;

/// Granularity of [`Request::PlugMemory`] in MiB: the smallest block that Linux plugs on x86-64.
pub const MEMORY_BLOCK_MIB: u32 = 2;

/// What the engine asks of a running VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The number of VM exits so far, answered by [`Answer::Exits`].
    Exits,
    /// Pauses the VM: no vCPU runs the guest and no device accesses its memory when it is answered by
    /// [`Answer::Done`]. Has no effect on a paused VM. If it fails, the guest runs on.
    Pause,
    /// Lets a paused VM run on, answered by [`Answer::Done`]. Has no effect on a VM that runs.
    Resume,
    /// Sets how much memory is to be plugged in besides the memory at boot. [`Answer::Done`] means that the
    /// guest is asked; [`super::FromVmm::MemoryPlugged`] that it has followed. It may follow in part or
    /// never, above all when it should give memory back. The report may precede the answer. Refused if the
    /// VM has no [`super::DeviceConfig::Mem`], or if `mib` is not a multiple of [`MEMORY_BLOCK_MIB`] up to its
    /// `max_mib`.
    PlugMemory {
        /// The wanted size of the plugged memory in MiB, not a difference.
        mib: u32,
    },
    /// How much memory is plugged in, answered by [`Answer::Memory`]. Refused if the VM has no
    /// [`super::DeviceConfig::Mem`].
    Memory,
    /// Adds a device to the running VM, answered by [`Answer::Attached`]. The descriptors that it names are
    /// sent with the request. The guest finds it when it scans its PCI bus again. Only a
    /// [`DeviceConfig::Net`], a [`DeviceConfig::Blk`] or the VM's first [`DeviceConfig::Mem`]; refused if the VM
    /// has no slot left, and a request that is refused changes nothing.
    Attach {
        /// The device.
        device: DeviceConfig,
    },
    /// Adds the devices that every VM has and no boot needs (virtio-rng and virtio-balloon) to the running
    /// VM, answered by [`Answer::Done`]. The guest finds them when it scans its PCI bus again. Refused the
    /// second time, and if the VM has no slots left.
    AttachCommon,
    /// Removes a device that was added by [`Request::Attach`], answered by [`Answer::Done`]: the guest should
    /// have removed it before. Its descriptors are closed. A [`DeviceConfig::Mem`] can't be removed.
    Detach {
        /// As in [`Answer::Attached`].
        slot: u8,
    },
}

/// The result of a [`Request`] that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// VM exits since the guest's start, by kind.
    Exits(BTreeMap<String, u64>),
    /// Memory besides the memory at boot.
    Memory {
        /// The size of the last [`Request::PlugMemory`] in MiB, 0 before the first.
        requested_mib: u32,
        /// How much the guest has plugged, in MiB: a multiple of [`MEMORY_BLOCK_MIB`] up to
        /// [`super::DeviceConfig::Mem`]'s `max_mib`.
        plugged_mib: u32,
    },
    /// The device is in this slot of the guest's PCI bus: it is the function `0001:00:<slot in hex>.0`.
    Attached {
        /// The slot, below 32.
        slot: u8,
    },
    /// The request has no other result.
    Done,
}

/// Why a request was not carried out: at most [`ErrorText::MAX_BYTES`] of [`printable`] text, also if the
/// peer sent more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct ErrorText(String);

impl ErrorText {
    /// Longest text, bytes.
    pub const MAX_BYTES: usize = 1024;

    /// The text of `error`.
    #[must_use]
    pub fn new(error: impl Display) -> Self {
        Self(printable(&error.to_string(), Self::MAX_BYTES))
    }
}

impl From<String> for ErrorText {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl Display for ErrorText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part of a message that the receiver may not know. If it is not a `T`, the error takes its place, and the
/// rest of the message is still read: so a request that the VMM does not know has an id to be answered by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lenient<T>(pub Result<T, ErrorText>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(serde_json::from_value(value).map_err(ErrorText::new)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FromVmm, ToVmm};
    use super::*;
    use serde_json::json;

    #[test]
    fn an_unknown_request_keeps_its_id() {
        for (request, named) in [
            (json!("Fly"), "Fly"),
            (json!({"Fly": {"to": "the moon"}}), "Fly"),
            (json!({"Exits": 1}), "unit"),
            (json!(null), "null"),
            (json!([]), "sequence"),
        ] {
            let message = json!({"Request": {"id": 7, "request": request}});
            let received: ToVmm<Lenient<Request>> = serde_json::from_value(message.clone()).unwrap();
            let ToVmm::Request {
                id: 7,
                request: Lenient(Err(error)),
            } = received
            else {
                panic!("{message}: {received:?}")
            };
            let error = error.to_string();
            assert!(error.contains(named), "{message}: {error}");
        }
        let known = ToVmm::Request {
            id: u64::MAX,
            request: Request::Exits,
        };
        let received: ToVmm<Lenient<Request>> =
            serde_json::from_value(serde_json::to_value(&known).unwrap()).unwrap();
        let expected = ToVmm::Request {
            id: u64::MAX,
            request: Lenient(Ok(Request::Exits)),
        };
        assert_eq!(received, expected);
    }

    #[test]
    fn a_request_without_an_id_is_no_message() {
        for message in [
            json!({"Request": {"request": "Exits"}}),
            json!({"Request": {"id": -1, "request": "Exits"}}),
            json!({"Request": {"id": 1}}),
        ] {
            assert!(
                serde_json::from_value::<ToVmm<Lenient<Request>>>(message.clone()).is_err(),
                "{message}"
            );
        }
    }

    #[test]
    fn an_error_s_text_is_bounded_by_the_receiver_too() {
        let text = "\x1b[31m".repeat(10_000);
        let message = json!({"Answer": {"id": 1, "result": {"Err": text}}});
        let FromVmm::Answer {
            result: Err(error), ..
        } = serde_json::from_value(message).unwrap()
        else {
            panic!()
        };
        assert_eq!(error, ErrorText::new(text));
        assert!(error.0.len() <= ErrorText::MAX_BYTES && !error.0.contains('\x1b'));
    }
}
