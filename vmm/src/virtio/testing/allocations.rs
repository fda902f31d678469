//! The allocator of the tests: it counts what each thread allocates, so that a test can show that a worker allocates
//! nothing for a request. [`super::Interrupts`] takes a worker's count with each of its notifications.

#![allow(unsafe_code, reason = "an allocator has no safe form")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// How often the calling thread has allocated memory, or changed an allocation's size.
pub fn of_this_thread() -> u64 {
    COUNT.get()
}

fn count() {
    // Has no destructor, so that a thread has it until its end.
    COUNT.set(COUNT.get().wrapping_add(1));
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does all of it, and counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the same promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above; `memory` is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; `memory` is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_threads_allocations_are_counted() {
        let before = of_this_thread();
        drop(std::hint::black_box(vec![1_u8; 100]));
        assert_eq!(of_this_thread() - before, 1);
        let other = std::thread::spawn(|| {
            let before = of_this_thread();
            let mut growing = std::hint::black_box(Vec::<u8>::with_capacity(1));
            growing.reserve(1000);
            of_this_thread() - before
        });
        let before = of_this_thread();
        assert_eq!(other.join().unwrap(), 2);
        assert_eq!(of_this_thread(), before);
    }
}
