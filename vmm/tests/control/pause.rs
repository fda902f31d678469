//! A VMM in its jail whose guest is paused.

use super::*;

#[test]
fn a_paused_guest_stands_still_until_it_is_resumed() {
    let Some(vmm) = Vmm::running(BUSY_GUEST) else {
        return;
    };
    let advances = |from: u64| (0..100_000).any(|_| vmm.reads() > from);
    for _ in 0..20 {
        // Each of the two has no effect the second time.
        for _ in 0..2 {
            assert_eq!(vmm.request(Request::Pause), Ok(Answer::Done));
        }
        let reads = vmm.reads();
        assert!((0..10).all(|_| vmm.reads() == reads), "a paused guest ran");
        for _ in 0..2 {
            assert_eq!(vmm.request(Request::Resume), Ok(Answer::Done));
        }
        assert!(advances(reads), "a resumed guest stands still");
    }
    assert_eq!(vmm.close().code(), Some(0));
}

#[test]
fn a_paused_vm_ends_with_the_shim() {
    for guest in [BUSY_GUEST, IDLE_GUEST] {
        let Some(vmm) = Vmm::running(guest) else { return };
        assert_eq!(vmm.request(Request::Pause), Ok(Answer::Done));
        assert_eq!(vmm.close().code(), Some(0));
    }
}
