//! File descriptors that a message names. The message contains indices ([`FdIndex`]) into the descriptors
//! that are sent with it. The sender collects them in [`Attachments`]; the receiver takes each one out of
//! [`Descriptors`] exactly once. Nothing here sends or receives.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

/// Names a descriptor by its position among those that are sent with the message, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdIndex(pub u8);

/// The descriptors to send with a message.
#[derive(Debug, Default)]
pub struct Attachments<'fd>(Vec<BorrowedFd<'fd>>);

impl<'fd> Attachments<'fd> {
    /// Appends `fd`; the message names it by the index that is returned. Sending fails if there are more than
    /// [`super::MAX_FDS`].
    pub fn add(&mut self, fd: BorrowedFd<'fd>) -> FdIndex {
        let index = u8::try_from(self.0.len()).unwrap_or(u8::MAX);
        self.0.push(fd);
        FdIndex(index)
    }

    /// The descriptors in the order of their indices, for [`super::Channel::send`].
    #[must_use]
    pub fn as_raw_fds(&self) -> Vec<RawFd> {
        self.0.iter().map(|fd| fd.as_raw_fd()).collect()
    }
}

/// Why a message's descriptors are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// The message names a descriptor that was not sent.
    #[error("{field}: there is no descriptor {index}, the message came with {count}")]
    OutOfRange {
        /// The field that names it.
        field: &'static str,
        /// Its index.
        index: u8,
        /// How many there are.
        count: usize,
    },
    /// The message names a descriptor twice.
    #[error("{field}: descriptor {index} is already used by another field")]
    UsedTwice {
        /// The second field that names it.
        field: &'static str,
        /// Its index.
        index: u8,
    },
    /// A descriptor was sent that the message does not name.
    #[error("no field uses descriptor {index}")]
    Unused {
        /// The first such index.
        index: usize,
    },
}

/// The descriptors that came with a message. Those that are not taken are closed.
#[derive(Debug)]
pub struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// The descriptors in the order in which they were received.
    #[must_use]
    pub fn new(received: Vec<OwnedFd>) -> Self {
        Self(received.into_iter().map(Some).collect())
    }

    /// Takes the descriptor that `field` of the message names.
    ///
    /// # Errors
    /// [`DescriptorError`] if there is no such descriptor, or if it has been taken already.
    pub fn take(&mut self, field: &'static str, index: FdIndex) -> Result<OwnedFd, DescriptorError> {
        let (count, FdIndex(index)) = (self.0.len(), index);
        let slot = self.0.get_mut(usize::from(index));
        let slot = slot.ok_or(DescriptorError::OutOfRange { field, index, count })?;
        slot.take().ok_or(DescriptorError::UsedTwice { field, index })
    }

    /// Checks that every descriptor was taken.
    ///
    /// # Errors
    /// [`DescriptorError::Unused`] with the first one that was not.
    pub fn finish(&self) -> Result<(), DescriptorError> {
        match self.0.iter().position(Option::is_some) {
            Some(index) => Err(DescriptorError::Unused { index }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    fn received(count: usize) -> Descriptors {
        Descriptors::new((0..count).map(|_| tempfile::tempfile().unwrap().into()).collect())
    }

    #[test]
    fn each_descriptor_is_taken_exactly_once() {
        let mut fds = received(2);
        let (second, first) = (fds.take("a", FdIndex(1)), fds.take("b", FdIndex(0)));
        assert_ne!(second.unwrap().as_raw_fd(), first.unwrap().as_raw_fd());
        assert_eq!(fds.finish(), Ok(()));

        let mut fds = received(2);
        fds.take("a", FdIndex(1)).unwrap();
        let again = fds.take("b", FdIndex(1)).unwrap_err();
        assert_eq!(again, DescriptorError::UsedTwice { field: "b", index: 1 });
        let beyond = fds.take("c", FdIndex(2)).unwrap_err();
        assert_eq!(
            beyond,
            DescriptorError::OutOfRange {
                field: "c",
                index: 2,
                count: 2
            }
        );
        assert_eq!(fds.finish(), Err(DescriptorError::Unused { index: 0 }));
    }

    #[test]
    fn the_sender_s_indices_count_from_0() {
        let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let mut attachments = Attachments::default();
        assert_eq!(attachments.add(files[1].as_fd()), FdIndex(0));
        assert_eq!(attachments.add(files[0].as_fd()), FdIndex(1));
        assert_eq!(
            attachments.as_raw_fds(),
            [files[1].as_raw_fd(), files[0].as_raw_fd()]
        );
    }
}
