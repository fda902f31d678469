//! Message signalled interrupts: what a device sends to the guest's local APICs instead of raising a pin. KVM
//! accepts them by [`crate::kvm::Vm::message_sender`]; tests collect them.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A message signalled interrupt: the write to memory that a device would make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Message {
    /// The address, which names the destination on x86.
    pub address: u64,
    /// The data, which contains the interrupt vector on x86.
    pub data: u32,
}

/// Sends a message on the calling thread. The error is that of KVM, which does not accept every address and
/// data that a guest may have set up.
pub type SendMessage = Arc<dyn Fn(Message) -> io::Result<()> + Send + Sync>;
