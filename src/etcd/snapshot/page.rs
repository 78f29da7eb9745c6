//! The pages of a bbolt file, taken for hostile: whatever they say is checked against their own length.
//!
//! Layout: etcd-io/bbolt, `internal/common/{page,meta,bucket}.go`, version 2, which every etcd 3 writes. Numbers are in the byte
//! order of the machine that wrote them: little-endian on every one that etcd supports.

use prost::bytes::Bytes;

/// Bytes of a page's header: number (8), flags (2), count of elements (2), number of further pages (4).
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes of one element, in branches and leaves.
const ELEMENT_BYTES: usize = 16;
/// Bytes of a bucket's value: its root page (8) and a sequence (8). Root 0: its one page follows in the value.
const BUCKET_BYTES: usize = 16;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const BUCKET: u32 = 0x01;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Bytes of the meta record that its checksum covers.
const SUMMED_BYTES: usize = 56;

/// The record in page 0 or 1 from which everything is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Meta {
    /// Bytes in a page: a power of two, 512 to 65536.
    pub page_size: u32,
    /// Page of the root bucket.
    pub root: u64,
    /// Number of pages in use.
    pub pages: u64,
    /// The transaction that wrote it.
    pub transaction: u64,
}

impl Meta {
    /// Reads it from the begin of a page. `None`: there is none, or it is damaged.
    pub(super) fn parse(page: &[u8]) -> Option<Self> {
        let meta = page.get(HEADER_BYTES..)?;
        let sum = meta
            .get(..SUMMED_BYTES)?
            .iter()
            .fold(FNV_OFFSET, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(FNV_PRIME));
        let page_size = u32_at(meta, 8)?;
        let fits = u16_at(page, 8)? & META != 0
            && u32_at(meta, 0)? == MAGIC
            && u32_at(meta, 4)? == VERSION
            && u64_at(meta, 56)? == sum
            && page_size.is_power_of_two()
            && (512..=65536).contains(&page_size);
        fits.then_some(())?;
        Some(Self { page_size, root: u64_at(meta, 16)?, pages: u64_at(meta, 40)?, transaction: u64_at(meta, 48)? })
    }
}

// FNV-1a, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// A page header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub number: u64,
    /// How many pages it goes on for.
    pub overflow: u32,
    flags: u16,
    count: u16,
}

impl Header {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            number: u64_at(bytes, 0)?,
            flags: u16_at(bytes, 8)?,
            count: u16_at(bytes, 10)?,
            overflow: u32_at(bytes, 12)?,
        })
    }

    pub(super) fn is_branch(&self) -> bool {
        self.flags == BRANCH
    }
}

/// A branch: the first key below each child, and the child's page.
#[derive(Debug)]
pub(super) struct Branch(pub Vec<(Bytes, u64)>);

/// A leaf: keys and what they hold.
#[derive(Debug)]
pub(super) struct Leaf(pub Vec<(Bytes, Content)>);

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Content {
    Value(Bytes),
    Bucket(Root),
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Self::Value(bytes) | Self::Bucket(Root::Inline(bytes)) => bytes.len(),
            Self::Bucket(Root::Page(_)) => BUCKET_BYTES,
        }
    }
}

/// Where a bucket's tree begins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Root {
    Page(u64),
    /// Small buckets lie in their parent's value.
    Inline(Bytes),
}

#[derive(Debug)]
pub(super) enum Page {
    Branch(Branch),
    Leaf(Leaf),
}

impl Page {
    /// Takes a whole page apart, overflow included. Every element lies in it, and the keys ascend.
    pub(super) fn parse(bytes: &Bytes) -> Result<Self, &'static str> {
        let header = Header::parse(bytes).ok_or("it is cut off")?;
        let elements = (0..usize::from(header.count)).map(|index| HEADER_BYTES + index * ELEMENT_BYTES);
        match header.flags {
            BRANCH => {
                let children = elements.map(|at| branch_element(bytes, at)).collect::<Option<Vec<_>>>();
                let children = children.ok_or("an element points out of it")?;
                fit(bytes, children.iter().map(|(key, _)| key.len()))?;
                ascend(&children)?;
                if children.is_empty() { Err("a branch without children") } else { Ok(Self::Branch(Branch(children))) }
            }
            LEAF => {
                let elements = elements.map(|at| leaf_element(bytes, at)).collect::<Option<Vec<_>>>();
                let elements = elements.ok_or("an element points out of it")?;
                fit(bytes, elements.iter().map(|(key, content)| key.len() + content.len()))?;
                ascend(&elements)?;
                Ok(Self::Leaf(Leaf(elements)))
            }
            _ => Err("it is neither branch nor leaf"),
        }
    }
}

fn branch_element(bytes: &Bytes, at: usize) -> Option<(Bytes, u64)> {
    let key = slice(bytes, at, u32_at(bytes, at)?, u32_at(bytes, at + 4)?)?;
    Some((key, u64_at(bytes, at + 8)?))
}

fn leaf_element(bytes: &Bytes, at: usize) -> Option<(Bytes, Content)> {
    let [flags, position, key_size, value_size] =
        [u32_at(bytes, at)?, u32_at(bytes, at + 4)?, u32_at(bytes, at + 8)?, u32_at(bytes, at + 12)?];
    let key = slice(bytes, at, position, key_size)?;
    let value = slice(bytes, at, position.checked_add(key_size)?, value_size)?;
    let content = if flags & BUCKET == 0 { Content::Value(value) } else { Content::Bucket(bucket(&value)?) };
    Some((key, content))
}

fn bucket(value: &Bytes) -> Option<Root> {
    match u64_at(value, 0)? {
        0 => (value.len() >= BUCKET_BYTES).then(|| Root::Inline(value.slice(BUCKET_BYTES..))),
        page => Some(Root::Page(page)),
    }
}

/// Positions count from the element that has them.
fn slice(bytes: &Bytes, element: usize, position: u32, size: u32) -> Option<Bytes> {
    let begin = element.checked_add(usize::try_from(position).ok()?)?;
    let end = begin.checked_add(usize::try_from(size).ok()?)?;
    (end <= bytes.len()).then(|| bytes.slice(begin..end))
}

/// Elements do not share bytes: otherwise a small file could cost hours.
fn fit(page: &Bytes, mut sizes: impl Iterator<Item = usize>) -> Result<(), &'static str> {
    let sum = sizes.try_fold(0_usize, usize::checked_add);
    if sum.is_some_and(|sum| sum <= page.len()) { Ok(()) } else { Err("its elements overlap") }
}

fn ascend<T>(elements: &[(Bytes, T)]) -> Result<(), &'static str> {
    let ascending = elements.iter().zip(elements.iter().skip(1)).all(|((one, _), (next, _))| one < next);
    if ascending { Ok(()) } else { Err("its keys are out of order") }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}
