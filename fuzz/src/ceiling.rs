//! Counts live memory and ends the process when a target goes above its ceiling: a length that was believed before it was checked shows
//! up here at once, and not only when the pages are touched.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs one input; more than `bytes` of memory on top of what is in use now is a finding.
pub fn within<T>(bytes: usize, run: impl FnOnce() -> T) -> T {
    LIMIT.store(LIVE.load(Relaxed) + bytes, Relaxed);
    let result = run();
    LIMIT.store(usize::MAX, Relaxed);
    result
}

fn grow(bytes: usize) {
    let before = LIVE.fetch_add(bytes, Relaxed);
    let limit = LIMIT.load(Relaxed);
    if before + bytes > limit {
        LIMIT.store(usize::MAX, Relaxed);
        eprintln!("memory ceiling: an allocation of {bytes} bytes on top of {before}");
        std::process::abort();
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}
