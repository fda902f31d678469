//! Guest memory of each backing, read and written, and its flags in /proc/self/smaps.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use vm_memory::{Bytes as _, GuestMemory as _, GuestMemoryRegion as _};

use super::hotplug::Hotplug;
use super::mapping::HUGE_PAGE;
use super::ranges::Range;
use super::*;
use crate::layout;

/// A file of `bytes` zeros with each of `texts` at its position.
fn file_with(bytes: u64, texts: &[(u64, &str)]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    for (position, text) in texts {
        file.write_all_at(text.as_bytes(), *position).unwrap();
    }
    file
}

fn file_backing(file: &File, offset: u64) -> Backing {
    // And more: a mapping has the part that it needs.
    let pages = file.metadata().unwrap().len() / 4096 + 1;
    let all = PageRange {
        first: 0,
        count: u32::try_from(pages).unwrap(),
    };
    Backing::File {
        file: file.try_clone().unwrap(),
        offset,
        data: vec![all],
    }
}

fn text_at<const N: usize>(memory: &Memory, address: u64) -> [u8; N] {
    let mut text = [0; N];
    memory.read_slice(&mut text, GuestAddress(address)).unwrap();
    text
}

/// The VmFlags of the mapping that starts at `address` (proc_pid_smaps(5)).
fn flags_at(address: usize) -> Vec<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{address:x}-");
    let flags = smaps
        .lines()
        .skip_while(|line| !line.starts_with(&start))
        .find_map(|line| line.strip_prefix("VmFlags:"));
    flags.unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn memory_ends_after_its_last_byte() {
    let memory = allocate(16 << 20).unwrap();
    memory.write_obj(7u8, GuestAddress((16 << 20) - 1)).unwrap();
    assert!(memory.write_obj(7u8, GuestAddress(16 << 20)).is_err());
}

#[test]
fn every_range_is_aligned_to_a_huge_page() {
    for bytes in [4096, 3 << 20, 5 << 30] {
        for region in allocate(bytes).unwrap().iter() {
            assert_eq!(region.as_ptr().addr() % HUGE_PAGE, 0);
        }
    }
}

#[test]
fn memory_beyond_the_mmio_hole_continues_at_4_gib() {
    let memory = allocate(4 << 30).unwrap();
    assert!(!memory.address_in_range(GuestAddress(layout::MMIO)));
    memory.write_obj(7u8, GuestAddress(layout::RAM_ABOVE_4G)).unwrap();
}

#[test]
fn nothing_is_mapped_for_hotplug() {
    let ranges = Ranges::of(16 << 20);
    let memory = map(&ranges, &Backing::Anonymous).unwrap();
    assert_eq!(memory.iter().map(|region| region.len()).sum::<u64>(), 16 << 20);
    assert!(!memory.address_in_range(GuestAddress(ranges.hotplug.start)));
}

#[test]
fn huge_pages_are_asked_for_and_cores_exclude_all_guest_memory() {
    let file = file_with(5 << 30, &[]);
    for (backing, asks_for_huge_pages) in [(Backing::Anonymous, true), (file_backing(&file, 0), false)] {
        let memory = map(&Ranges::of(5 << 30), &backing).unwrap();
        assert_eq!(memory.iter().count(), 2);
        for region in memory.iter() {
            let flags = flags_at(region.as_ptr().addr());
            let has = |flag: &str| flags.iter().any(|set| set == flag);
            assert!(has("dd"), "{backing:?}: {flags:?}");
            if Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
                assert_eq!(has("hg"), asks_for_huge_pages, "{backing:?}: {flags:?}");
            }
        }
    }
}

#[test]
fn a_file_fills_all_ranges_from_its_offset_on() {
    let offset = 3 * 4096;
    let bytes = 4 << 30;
    let texts = [
        (0, "before"),
        (offset, "first"),
        (offset + layout::MMIO - 4, "last"),
        (offset + layout::MMIO, "next"),
        (offset + bytes - 3, "end"),
    ];
    let file = file_with(offset + bytes, &texts);
    let memory = map(&Ranges::of(bytes), &file_backing(&file, offset)).unwrap();
    assert_eq!(text_at(&memory, 0), *b"first");
    assert_eq!(text_at(&memory, layout::MMIO - 4), *b"last");
    assert_eq!(text_at(&memory, layout::RAM_ABOVE_4G), *b"next");
    assert_eq!(text_at(&memory, memory.last_addr().0 - 2), *b"end");
}

#[test]
fn no_write_reaches_the_file_or_another_vm_of_the_same_file() {
    let file = file_with(8 << 20, &[(4096, "template")]);
    let [first, second] = [(); 2].map(|()| map(&Ranges::of(8 << 20), &file_backing(&file, 0)).unwrap());
    first.write_slice(b"modified", GuestAddress(4096)).unwrap();
    assert_eq!(text_at(&first, 4096), *b"modified");
    assert_eq!(text_at(&second, 4096), *b"template");
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, *b"template");
}

#[test]
fn a_file_that_is_too_short_or_at_an_odd_offset_is_refused() {
    let file = file_with(8 << 20, &[]);
    let ranges = Ranges::of(8 << 20);
    let error = map(&ranges, &file_backing(&file, 4096)).unwrap_err().to_string();
    assert_eq!(
        error,
        "the file of guest memory has 8388608 bytes, but 8392704 are needed"
    );
    file.set_len(16 << 20).unwrap();
    let error = map(&ranges, &file_backing(&file, 100)).unwrap_err().to_string();
    assert!(error.contains("Invalid argument"), "{error}");
    let error = map(&ranges, &file_backing(&file, u64::MAX)).unwrap_err();
    assert!(matches!(error, Error::ShortFile { .. }), "{error}");
}

#[test]
fn discarded_pages_read_as_before_the_first_write() {
    let file = file_with(4 << 20, &[(4096, "second"), (8192, "third")]);
    for (backing, expected) in [
        (Backing::Anonymous, [[0; 5], *b"other", *b"other"]),
        (file_backing(&file, 0), [*b"secon", *b"other", *b"other"]),
    ] {
        let memory = map(&Ranges::of(4 << 20), &backing).unwrap();
        for page in [1, 2, 3] {
            memory.write_slice(b"other", GuestAddress(page * 4096)).unwrap();
        }
        // The last page only in part.
        discard(&memory, GuestAddress(4096), 2 * 4096 - 1).unwrap();
        assert_eq!([1, 2, 3].map(|page| text_at(&memory, page * 4096)), expected);
    }
}

#[test]
fn a_range_that_is_not_all_guest_memory_is_not_discarded() {
    let memory = allocate(4 << 20).unwrap();
    let last = (4 << 20) - 4096;
    memory.write_slice(b"other", GuestAddress(last)).unwrap();
    for (address, bytes) in [
        (last, 8192),
        (last, u64::MAX),
        (u64::MAX - 1, 4096),
        (4 << 20, 4096),
    ] {
        discard(&memory, GuestAddress(address), bytes).unwrap();
    }
    assert_eq!(text_at(&memory, last), *b"other");
}

/// A range of 1 GiB for hot-plug beside 16 MiB of RAM.
fn hotplug() -> (Hotplug, Memory, Range) {
    let ranges = Ranges::of(16 << 20);
    let range = Range {
        bytes: 1 << 30,
        ..ranges.hotplug
    };
    (
        Hotplug::new(range),
        map(&ranges, &Backing::Anonymous).unwrap(),
        range,
    )
}

#[test]
fn memory_grows_in_one_region_and_keeps_its_content() {
    let (mut hotplug, mut memory, range) = hotplug();
    for (bytes, mapped) in [(2 << 20, 128 << 20), (600 << 20, 640 << 20), (1 << 30, 1 << 30)] {
        let added = range.start + hotplug.mapped();
        let growth = hotplug.grow(&memory, bytes).unwrap().unwrap();
        assert_eq!(
            (growth.added.start, growth.added.end()),
            (added, range.start + mapped)
        );
        let host = growth.memory.get_host_address(GuestAddress(added)).unwrap();
        assert_eq!(growth.host, host.addr() as u64);
        hotplug.commit(&growth);
        memory = growth.memory;
        assert_eq!((hotplug.mapped(), memory.iter().count()), (mapped, 2));
        memory.write_slice(b"text", GuestAddress(added)).unwrap();
        let end = GuestAddress(range.start + mapped);
        memory.write_slice(b"end", GuestAddress(end.0 - 3)).unwrap();
        assert!(!memory.address_in_range(end));
        assert!(hotplug.grow(&memory, bytes).unwrap().is_none());
    }
    assert!(hotplug.grow(&memory, 0).unwrap().is_none());
    for start in [0, 128 << 20, 640 << 20] {
        assert_eq!(text_at(&memory, range.start + start), *b"text");
    }
}

#[test]
fn memory_that_was_not_committed_can_be_asked_for_again() {
    let (mut hotplug, memory, range) = hotplug();
    let first = hotplug.grow(&memory, 256 << 20).unwrap().unwrap();
    let second = hotplug.grow(&memory, 128 << 20).unwrap().unwrap();
    assert_eq!(first.host, second.host);
    hotplug.commit(&second);
    assert_eq!((hotplug.mapped(), second.added.start), (128 << 20, range.start));
}

#[test]
fn more_than_the_range_is_refused_and_a_range_costs_nothing_before_it_is_used() {
    let (mut hotplug, memory, _) = hotplug();
    for bytes in [(1 << 30) + 1, u64::MAX] {
        let error = hotplug.grow(&memory, bytes).unwrap_err();
        assert!(matches!(error, Error::Layout(_)), "{error}");
    }
    assert!(format!("{hotplug:?}").contains("reserved: None"));
}

#[test]
fn plugged_memory_has_the_policy_of_boot_memory() {
    let (mut hotplug, memory, _) = hotplug();
    let growth = hotplug.grow(&memory, 1).unwrap().unwrap();
    let flags = flags_at(usize::try_from(growth.host).unwrap());
    let has = |flag: &str| flags.iter().any(|set| set == flag);
    assert!(has("dd"), "{flags:?}");
    assert!(
        has("hg") || !Path::new("/sys/kernel/mm/transparent_hugepage").exists(),
        "{flags:?}"
    );
    assert_eq!(usize::try_from(growth.host).unwrap() % HUGE_PAGE, 0);
}

/// Two ranges of 4 MiB, and a file for both that has text at the beginning of each.
fn two_ranges() -> (Ranges, File) {
    let range = |start| Range {
        start,
        bytes: 4 << 20,
    };
    let ranges = Ranges {
        boot: vec![range(0), range(1 << 32)],
        ..Ranges::of(0)
    };
    (ranges, file_with(8 << 20, &[(0, "low"), (4 << 20, "high")]))
}

/// Whether the page at `address` of this process is memory of its own (pagemap(5)).
fn is_own(address: usize) -> bool {
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let at = u64::try_from(address / 4096 * 8).unwrap();
    pagemap.read_exact_at(&mut entry, at).unwrap();
    let (present, of_file) = (1 << 63, 1 << 61);
    u64::from_le_bytes(entry) & (present | of_file) == present
}

#[test]
fn pages_are_copied_ahead_of_the_guest() {
    let (ranges, file) = two_ranges();
    let memory = map(&ranges, &file_backing(&file, 0)).unwrap();
    let pages = |first, count| PageRange { first, count };
    copy_ahead(&memory, &[pages(0, 1), pages(7, 2), pages(1024, 1)]);
    let own = |region: usize, page: usize| {
        let region = memory.iter().nth(region).unwrap();
        is_own(region.as_ptr().addr() + page * 4096)
    };
    let copied = [(0, 0), (0, 7), (0, 8), (1, 0)];
    for (region, page) in copied {
        assert!(own(region, page), "page {page} of region {region}");
    }
    for (region, page) in [(0, 1), (0, 6), (0, 9), (1, 1)] {
        assert!(!own(region, page), "page {page} of region {region}");
    }
    assert_eq!(
        (&text_at(&memory, 0), &text_at(&memory, 1 << 32)),
        (b"low", b"high")
    );
    // Those that guest memory does not have, or not in one range, are left out.
    copy_ahead(
        &memory,
        &[pages(1023, 2), pages(2048, 1), pages(u32::MAX, u32::MAX)],
    );
    memory.write_slice(b"new", GuestAddress(0)).unwrap();
    let again = map(&ranges, &file_backing(&file, 0)).unwrap();
    assert_eq!(&text_at(&again, 0), b"low", "the file was written");
}

#[test]
fn holes_of_a_file_on_a_tmpfs_stay_holes() {
    use std::os::unix::fs::MetadataExt as _;

    let file = File::from(rustix::fs::memfd_create("template", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(16 << 20).unwrap();
    file.write_all_at(b"data", (5 << 20) + 4096).unwrap();
    let data = vec![PageRange {
        first: (5 << 8) + 1,
        count: 1,
    }];
    let blocks = file.metadata().unwrap().blocks();
    let backing = Backing::File {
        file: file.try_clone().unwrap(),
        offset: 0,
        data,
    };
    let memory = map(&Ranges::of(16 << 20), &backing).unwrap();
    assert_eq!(text_at(&memory, (5 << 20) + 4096), *b"data");
    for page in (0..16 << 20).step_by(4096) {
        memory.write_slice(b"guest", GuestAddress(page)).unwrap();
    }
    assert_eq!(text_at(&memory, (5 << 20) + 4096), *b"guest");
    assert_eq!(file.metadata().unwrap().blocks(), blocks, "the file has grown");
}

#[test]
fn a_file_s_ranges_are_cut_at_the_regions() {
    let (low, high) = (layout::MMIO, 4096);
    let file = file_with(low + high, &[(low - 2, "ends and begins")]);
    let backing = Backing::File {
        file,
        offset: 0,
        data: vec![PageRange {
            first: u32::try_from(low / 4096).unwrap() - 1,
            count: 2,
        }],
    };
    let memory = map(&Ranges::of(low + high), &backing).unwrap();
    assert_eq!(text_at(&memory, low - 2), *b"en");
    assert_eq!(text_at(&memory, layout::RAM_ABOVE_4G), *b"ds and begins");
}
