//! Walks a bucket's tree from its last key to its first, page by page by offset. Bounded in depth and memory, whatever the file says.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use prost::bytes::Bytes;

use super::page::{Branch, Content, HEADER_BYTES, Header, Leaf, Page, Root};

/// A bbolt file with its meta record read.
pub(super) struct Tree<'f> {
    file: &'f File,
    /// Bytes of the database in the file.
    size: u64,
    page_size: u32,
    /// Pages in use, as the meta record says.
    pages: u64,
    /// One bit for each page: in a sound file every page has one place.
    seen: Vec<u64>,
}

/// What a walk meets.
pub(super) enum Step<'a> {
    Element(&'a Bytes, &'a Content),
    Fault(Fault),
    /// A page of so many bytes is to be read.
    Page(u64),
}

/// A page that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    pub page: u64,
    pub why: &'static str,
    /// The keys that lay below it: from this one
    pub from: Option<Bytes>,
    /// to before this one.
    pub to: Option<Bytes>,
}

/// Callback of a walk.
pub(super) type Each<'a> = dyn FnMut(Step<'_>) -> ControlFlow<()> + 'a;

/// Deeper than any tree: with two children per branch this would be 65 536 leaves, and etcd's branches have a hundred.
const DEPTH_LIMIT: usize = 16;
/// etcd's largest request is 1.5 MiB by default, and the keys of its branches have 17 bytes.
const LEAF_LIMIT: u64 = 64 << 20;
const BRANCH_LIMIT: u64 = 4 << 20;

struct Frame {
    children: Vec<(Bytes, u64)>,
    /// The key before which all of it lies.
    end: Option<Bytes>,
}

impl<'f> Tree<'f> {
    pub(super) fn new(file: &'f File, size: u64, page_size: u32, pages: u64) -> Self {
        let held = pages.min(size / u64::from(page_size));
        let words = usize::try_from(held / 64 + 1).unwrap_or(0);
        Self { file, size, page_size, pages, seen: vec![0; words] }
    }

    /// Calls `each` for every element of the bucket from the last to the first, and for every page that cannot be used.
    pub(super) fn walk(&mut self, root: &Root, each: &mut Each<'_>) -> ControlFlow<()> {
        let (number, first) = match root {
            Root::Inline(bytes) => (0, Page::parse(bytes)),
            Root::Page(number) => (*number, self.page(*number)),
        };
        let mut stack = Vec::new();
        self.enter(number, first, (None, None), &mut stack, each)?;
        while let Some(frame) = stack.last_mut() {
            let Some((from, number)) = frame.children.pop() else {
                stack.pop();
                continue;
            };
            let to = frame.end.replace(from.clone());
            let page = if stack.len() < DEPTH_LIMIT { self.page(number) } else { Err("it lies too deep") };
            self.enter(number, page, (Some(from), to), &mut stack, each)?;
        }
        ControlFlow::Continue(())
    }

    /// Takes up a page whose keys must lie between these two.
    fn enter(
        &self,
        number: u64,
        page: Result<Page, &'static str>,
        (from, to): (Option<Bytes>, Option<Bytes>),
        stack: &mut Vec<Frame>,
        each: &mut Each<'_>,
    ) -> ControlFlow<()> {
        each(Step::Page(self.page_size.into()))?;
        let belongs = |first: Option<&Bytes>, last: Option<&Bytes>| {
            let after_begin = first.zip(from.as_ref()).is_none_or(|(first, from)| first >= from);
            after_begin && last.zip(to.as_ref()).is_none_or(|(last, to)| last < to)
        };
        let why = match page {
            Err(why) => why,
            Ok(Page::Branch(Branch(children))) => {
                if belongs(children.first().map(|(key, _)| key), children.last().map(|(key, _)| key)) {
                    stack.push(Frame { children, end: to });
                    return ControlFlow::Continue(());
                }
                MISPLACED
            }
            Ok(Page::Leaf(Leaf(elements))) => {
                if belongs(elements.first().map(|(key, _)| key), elements.last().map(|(key, _)| key)) {
                    return elements.iter().rev().try_for_each(|(key, content)| each(Step::Element(key, content)));
                }
                MISPLACED
            }
        };
        each(Step::Fault(Fault { page: number, why, from, to }))
    }

    fn page(&mut self, number: u64) -> Result<Page, &'static str> {
        // Pages 0 and 1 are the meta records.
        if number < 2 || number >= self.pages {
            return Err("there is no such page");
        }
        let page_size = u64::from(self.page_size);
        let offset = number.checked_mul(page_size).ok_or(CUT_OFF)?;
        let mut bytes = vec![0; HEADER_BYTES];
        self.fill(&mut bytes, offset)?;
        let header = Header::parse(&bytes).ok_or(CUT_OFF)?;
        if header.number != number {
            return Err("another page stands in its place");
        }
        let length = (u64::from(header.overflow) + 1) * page_size;
        if length > if header.is_branch() { BRANCH_LIMIT } else { LEAF_LIMIT } {
            return Err("it claims to be larger than any page of etcd");
        }
        for number in number..=number.saturating_add(u64::from(header.overflow)) {
            self.take(number)?;
        }
        bytes.resize(usize::try_from(length).map_err(|_| CUT_OFF)?, 0);
        self.fill(&mut bytes, offset)?;
        Page::parse(&bytes.into())
    }

    /// Marks a page as met.
    fn take(&mut self, number: u64) -> Result<(), &'static str> {
        let word = usize::try_from(number / 64).ok().and_then(|word| self.seen.get_mut(word)).ok_or(CUT_OFF)?;
        let bit = 1 << (number % 64);
        if *word & bit != 0 {
            return Err("two places refer to it");
        }
        *word |= bit;
        Ok(())
    }

    fn fill(&self, bytes: &mut [u8], offset: u64) -> Result<(), &'static str> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size) {
            return Err(CUT_OFF);
        }
        self.file.read_exact_at(bytes, offset).map_err(|_| "the disk does not give it")
    }
}

const CUT_OFF: &str = "the file ends before it does";
const MISPLACED: &str = "its keys do not belong where it stands";
