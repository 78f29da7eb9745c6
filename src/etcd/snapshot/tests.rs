use std::fs;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::page::Page;
use super::*;

const PAGE: usize = 4096;

/// A page with this header and these elements: 16 bytes each, then what they point to.
fn page(number: u64, flags: u16, elements: &[([u32; 4], Vec<u8>)]) -> Vec<u8> {
    let data: usize = elements.iter().map(|(_, data)| data.len()).sum();
    let overflow = (16 + 16 * elements.len() + data).div_ceil(PAGE) - 1;
    let mut head = number.to_le_bytes().to_vec();
    head.extend(flags.to_le_bytes());
    head.extend(u16::try_from(elements.len()).unwrap().to_le_bytes());
    head.extend(u32::try_from(overflow).unwrap().to_le_bytes());
    let mut tail: Vec<u8> = Vec::new();
    for (index, (fields, data)) in elements.iter().enumerate() {
        // The one that is 0xffffffff becomes the position, counted from the element.
        let position = u32::try_from(16 * (elements.len() - index) + tail.len()).unwrap();
        head.extend(fields.iter().flat_map(|field| if *field == POSITION { position } else { *field }.to_le_bytes()));
        tail.extend(data);
    }
    head.extend(tail);
    head.resize((overflow + 1) * PAGE, 0);
    head
}

const POSITION: u32 = u32::MAX;

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap()
}

fn leaf(number: u64, elements: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let elements: Vec<_> = elements
        .iter()
        .map(|(key, value)| ([0, POSITION, length(key), length(value)], [&key[..], value].concat()))
        .collect();
    page(number, 2, &elements)
}

fn branch(number: u64, children: &[(Vec<u8>, u32)]) -> Vec<u8> {
    let children: Vec<_> =
        children.iter().map(|(key, child)| ([POSITION, length(key), *child, 0], key.clone())).collect();
    page(number, 1, &children)
}

/// The page with the list of buckets: one bucket `key`.
fn buckets(number: u64, root: u64, inline: &[u8]) -> Vec<u8> {
    let value = [&root.to_le_bytes()[..], &[0; 8], inline].concat();
    let key = b"key".to_vec();
    page(number, 2, &[([1, POSITION, 3, length(&value)], [key, value].concat())])
}

fn meta(number: u64, transaction: u64, root: u64, pages: u64) -> Vec<u8> {
    let mut record = Vec::new();
    for field in [0xED0C_DAED_u32, 2, u32::try_from(PAGE).unwrap(), 0] {
        record.extend(field.to_le_bytes());
    }
    for field in [root, 0, 2, pages, transaction] {
        record.extend(field.to_le_bytes());
    }
    let sum = record
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    record.extend(sum.to_le_bytes());
    let mut bytes = page(number, 4, &[]);
    bytes.splice(16..16 + record.len(), record);
    bytes
}

fn revision(main: u64, deletion: bool) -> Vec<u8> {
    let mut key = [&main.to_be_bytes()[..], b"_", &0_u64.to_be_bytes()].concat();
    key.extend(deletion.then_some(b't'));
    key
}

fn put(main: u64, key: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    let mod_revision = i64::try_from(main).unwrap();
    let [key, value] = [key, value].map(|text| Bytes::copy_from_slice(text.as_bytes()));
    (revision(main, false), KeyValue { key, value, mod_revision, ..KeyValue::default() }.encode_to_vec())
}

fn delete(main: u64, key: &str) -> (Vec<u8>, Vec<u8>) {
    let key = Bytes::copy_from_slice(key.as_bytes());
    (revision(main, true), KeyValue { key, ..KeyValue::default() }.encode_to_vec())
}

/// Two meta records, a list of buckets in page 3, a branch in 4, leaves in 5 to 7. A large value makes page 6 two pages long.
fn store() -> Vec<Vec<u8>> {
    let large = "x".repeat(5000);
    vec![
        meta(0, 8, 3, 9),
        meta(1, 9, 3, 9),
        page(2, 0x10, &[]),
        buckets(3, 4, &[]),
        branch(4, &[(revision(1, false), 5), (revision(4, false), 6), (revision(7, false), 8)]),
        leaf(5, &[put(1, "a", "a1"), put(2, "b", "b2"), put(3, "c", "c3")]),
        leaf(6, &[put(4, "a", "a4"), delete(5, "b"), put(6, "d", &large)]),
        leaf(8, &[put(7, "e", "e7"), delete(8, "c"), put(9, "c", "c9")]),
    ]
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    file
}

fn read(bytes: &[u8]) -> (Vec<(String, u64, usize)>, Walked) {
    let file = file(bytes);
    let snapshot = Snapshot::open(file.path()).unwrap();
    let mut found = Vec::new();
    let walked = snapshot.newest(&mut |_| {}, &mut |entry| {
        found.push((String::from_utf8(entry.key.to_vec()).unwrap(), entry.mod_revision, entry.value.len()));
        ControlFlow::Continue(())
    });
    found.sort();
    (found, walked)
}

fn entries(expected: &[(&str, u64, usize)]) -> Vec<(String, u64, usize)> {
    expected.iter().map(|(key, revision, length)| ((*key).to_owned(), *revision, *length)).collect()
}

#[test]
fn the_newest_value_of_each_key_counts() {
    let (found, walked) = read(&store().concat());
    assert_eq!(walked, Walked { revision: 9, ..Walked::default() });
    assert_eq!(found, entries(&[("a", 4, 2), ("c", 9, 2), ("d", 6, 5000), ("e", 7, 2)]));
}

#[test]
fn a_small_bucket_lies_in_its_parent() {
    let mut inline = leaf(0, &[put(1, "a", "a1"), put(2, "b", "b2")]);
    inline.truncate(300);
    let (found, walked) =
        read(&[meta(0, 1, 3, 4), meta(1, 0, 3, 4), page(2, 0x10, &[]), buckets(3, 0, &inline)].concat());
    assert_eq!((found, walked.faults.len()), (entries(&[("a", 1, 2), ("b", 2, 2)]), 0));
}

#[test]
fn an_empty_store_is_sound() {
    let inline = &page(0, 2, &[])[..16];
    let (found, walked) =
        read(&[meta(0, 1, 3, 4), meta(1, 0, 3, 4), page(2, 0x10, &[]), buckets(3, 0, inline)].concat());
    assert_eq!((found.len(), walked), (0, Walked { revision: 1, ..Walked::default() }));
}

#[test]
fn the_newer_meta_record_counts_and_either_may_be_lost() {
    let mut pages = store();
    pages[0] = meta(0, 8, 2, 9);
    assert_eq!(read(&pages.concat()).1.faults.len(), 0);
    pages[0] = vec![0; PAGE];
    assert_eq!(read(&pages.concat()).1.faults.len(), 0);
    let mut pages = store();
    pages[1][60] ^= 1;
    assert_eq!(read(&pages.concat()).1.faults.len(), 0);
    pages[0][60] ^= 1;
    let file = file(&pages.concat());
    assert!(matches!(Snapshot::open(file.path()), Err(SnapshotError::NoDatabase(_))));
}

#[test]
fn damage_is_named_and_the_rest_is_read() {
    type Damage = fn(&mut Vec<Vec<u8>>);
    let without_middle: &[_] = &[("a", 1, 2), ("b", 2, 2), ("c", 9, 2), ("e", 7, 2)];
    let lost = "what was written at revisions 4 to 7 is not readable";
    let cases: [(Damage, String, &[_]); 8] = [
        (|pages| pages[6].fill(0), format!("page 6: another page stands in its place; {lost}"), without_middle),
        (|pages| pages[6][8] = 0x10, format!("page 6: it is neither branch nor leaf; {lost}"), without_middle),
        (|pages| pages[6][16 + 4] = 0xff, format!("page 6: its keys are out of order; {lost}"), without_middle),
        (|pages| pages[6][16 + 7] = 0x7f, format!("page 6: an element points out of it; {lost}"), without_middle),
        (
            |pages| pages[6][15] = 1,
            format!("page 6: it claims to be larger than any page of etcd; {lost}"),
            without_middle,
        ),
        (
            |pages| pages[4] = branch(4, &[(revision(1, false), 5), (revision(4, false), 5), (revision(7, false), 8)]),
            // The second place is met first, and does not take what the first one has.
            "page 5: its keys do not belong where it stands; what was written at revisions 4 to 7 is not readable"
                .to_owned(),
            &[("c", 9, 2), ("e", 7, 2)],
        ),
        (
            |pages| pages[4] = branch(4, &[(revision(1, false), 4)]),
            "page 4: two places refer to it; what was written from revision 1 on is not readable".to_owned(),
            &[],
        ),
        (
            |pages| pages[5] = leaf(5, &[(b"\0".to_vec(), Vec::new()), put(2, "b", "b2"), put(3, "c", "c3")]),
            "page 5: its keys do not belong where it stands; what was written at revisions 1 to 4 is not readable"
                .to_owned(),
            &[("a", 4, 2), ("c", 9, 2), ("d", 6, 5000), ("e", 7, 2)],
        ),
    ];
    for (damage, fault, left) in cases {
        let mut pages = store();
        damage(&mut pages);
        let (found, walked) = read(&pages.concat());
        assert_eq!(walked.faults.first(), Some(&fault), "{walked:?}");
        assert_eq!(found, entries(left), "{fault}");
    }
}

#[test]
fn a_damaged_value_is_named_by_its_revision() {
    let (key, value) = put(2, "b", "b2");
    for (wrong, why) in [
        ((key.clone(), b"\xff".to_vec()), "revision 2: its value is no KeyValue message"),
        ((key.clone(), Vec::new()), "revision 2: its value names no key"),
        ((key.clone(), put(9, "b", "b2").1), "revision 2: its value belongs to another revision"),
        (([&key[..], b"x"].concat(), value), "revision unknown: its key is no revision"),
    ] {
        let mut pages = store();
        pages[5] = leaf(5, &[put(1, "f", "f1"), wrong, put(3, "c", "c3")]);
        let (found, walked) = read(&pages.concat());
        assert_eq!(walked.faults, [why]);
        assert_eq!(found.len(), 5);
    }
}

#[test]
fn a_file_that_is_cut_off_says_so() {
    let bytes = store().concat();
    for length in (2 * PAGE..bytes.len()).step_by(1000) {
        let (_, walked) = read(&bytes[..length]);
        assert!(walked.faults[0].starts_with("the file is cut off: of 9 pages, "), "{walked:?}");
        assert!(walked.faults.len() > 1, "{length}");
    }
    for length in [0, 10, 79] {
        let file = file(&bytes[..length]);
        assert!(matches!(Snapshot::open(file.path()), Err(SnapshotError::NoDatabase(_))));
    }
}

#[test]
fn the_digest_is_compared() {
    let bytes = store().concat();
    let digest = |bytes: &[u8]| {
        let file = file(bytes);
        let mut read = 0;
        let digest = Snapshot::open(file.path()).unwrap().check_digest(&mut |bytes| read += bytes).unwrap();
        (digest, read)
    };
    assert_eq!(digest(&bytes), (Digest::Absent, 0));
    let mut saved = [&bytes[..], &Sha256::digest(&bytes)].concat();
    assert_eq!(digest(&saved), (Digest::Matches, bytes.len() as u64));
    assert_eq!(read(&saved).1.faults.len(), 0);
    saved[5 * PAGE - 1] ^= 1;
    assert_eq!(digest(&saved).0, Digest::Differs);
}

#[test]
fn what_is_no_snapshot_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let open = |path: &Path| Snapshot::open(path).unwrap_err();
    assert!(matches!(open(directory.path()), SnapshotError::Io { .. }));
    assert!(matches!(open(&directory.path().join("none")), SnapshotError::Io { .. }));
    let used = file(&store().concat());
    let etcd = File::open(used.path()).unwrap();
    flock(&etcd, FlockOperation::LockExclusive).unwrap();
    assert!(matches!(open(used.path()), SnapshotError::InUse(_)));
    drop(etcd);
    let snapshot = Snapshot::open(used.path()).unwrap();
    flock(File::open(used.path()).unwrap(), FlockOperation::NonBlockingLockExclusive).unwrap();
    drop(snapshot);
}

#[test]
fn elements_do_not_share_bytes() {
    // 3000 elements, each with the same kilobyte as its key.
    let mut bytes = page(5, 2, &vec![([0, POSITION, 0, 0], Vec::new()); 3000]);
    bytes.extend([0; PAGE]);
    let end = bytes.len();
    for at in (16..16 + 16 * 3000).step_by(16) {
        bytes[at + 4..at + 8].copy_from_slice(&u32::try_from(end - 2000 - at).unwrap().to_le_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&1000_u32.to_le_bytes());
    }
    assert_eq!(Page::parse(&bytes.into()).err(), Some("its elements overlap"));
}

proptest! {
    #[test]
    fn no_page_panics(bytes: Vec<u8>, flags in 0_u16..4, count: u16) {
        let mut page = [&[0; 8][..], &flags.to_le_bytes(), &count.to_le_bytes(), &[0; 4]].concat();
        page.extend(bytes);
        let _ = Page::parse(&page.into());
    }

    #[test]
    fn no_change_of_a_file_panics_or_invents_keys(changes in prop::collection::vec((2 * PAGE..9 * PAGE, any::<u8>()), 1..20)) {
        let mut bytes = store().concat();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        let file = file(&bytes);
        let mut count = 0;
        Snapshot::open(file.path()).unwrap().newest(&mut |_| {}, &mut |_| {
            count += 1;
            ControlFlow::Continue(())
        });
        prop_assert!(count <= 9);
    }

    #[test]
    fn a_loop_of_branches_ends(children in prop::collection::vec(prop::collection::vec(3_u32..11, 1..4), 7)) {
        let mut pages = vec![meta(0, 1, 3, 11), meta(1, 0, 3, 11), page(2, 0x10, &[]), buckets(3, 4, &[])];
        for (number, children) in (4..).zip(children) {
            let children: Vec<_> = (1..).zip(children).map(|(key, child)| (revision(key, false), child)).collect();
            pages.push(branch(number, &children));
        }
        prop_assert_eq!(read(&pages.concat()).0.len(), 0);
    }
}
