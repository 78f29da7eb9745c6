//! A document, printed by Chromium and taken apart again by Poppler.

use std::env;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::parts::record_run;

/// A size of paper, in points, and the font of the machine that prints on it: the wide one where there is no Arial.
#[derive(Clone, Copy)]
pub struct Paper {
    name: &'static str,
    font: &'static str,
    width: f64,
    height: f64,
}

impl Paper {
    pub const A4: Self = Self { name: "A4", font: "Liberation Sans", width: 595.0, height: 842.0 };
    pub const LETTER: Self = Self { name: "letter", font: "DejaVu Sans", width: 612.0, height: 792.0 };
    pub const ALL: [Self; 2] = [Self::A4, Self::LETTER];
}

/// A printed document.
pub struct Printed {
    name: String,
    paper: Paper,
    /// All of its text without blanks: lines may break anywhere.
    text: String,
    pages: Vec<Page>,
    pictures: Vec<Picture>,
}

struct Page {
    width: f64,
    height: f64,
    words: Vec<Word>,
}

struct Word {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
    text: String,
}

/// A page in grey, at 72 dots per inch: one for each point.
struct Picture {
    width: usize,
    pixels: Vec<u8>,
}

impl Printed {
    /// Prints the document on this paper, as someone would who chose it in the browser.
    pub fn new(name: &str, html: &str, paper: Paper) -> Self {
        let folder = Folder::new(&format!("{name}-{}", paper.name));
        let (page, pdf) = (folder.path().join("page.html"), folder.path().join("page.pdf"));
        let chosen =
            format!("<style>@page {{ size: {} }} body {{ font-family: '{}' }}</style>", paper.name, paper.font);
        fs::write(&page, format!("{html}{chosen}")).unwrap();
        let mut chromium = Command::new("chromium");
        chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]);
        chromium.arg(format!("--user-data-dir={}", folder.path().join("browser").display()));
        chromium.arg(format!("--print-to-pdf={}", pdf.display()));
        run(chromium.arg(format!("file://{}", page.display())));
        let _ = fs::remove_dir_all(folder.path().join("browser"));

        let layout = run(Command::new("pdftotext").arg("-bbox").arg(&pdf).arg("-"));
        // In the order in which it was painted, which is that of the document: cell by cell.
        let text = run(Command::new("pdftotext").arg("-raw").arg(&pdf).arg("-"));
        run(Command::new("pdftoppm").args(["-gray", "-r", "72"]).arg(&pdf).arg(folder.path().join("grey")));
        record_run("chromium");
        let mut pictures: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        pictures.retain(|path| path.extension().is_some_and(|extension| extension == "pgm"));
        pictures.sort();
        Self {
            name: format!("{name} on {}", paper.name),
            paper,
            text: without_blanks(&text),
            pages: layout.split("<page ").skip(1).map(Page::parse).collect(),
            pictures: pictures.iter().map(|path| Picture::parse(&fs::read(path).unwrap())).collect(),
        }
    }

    /// Each of these texts stands there.
    pub fn has(&self, texts: &[&str]) {
        for text in texts {
            assert!(self.text.contains(&without_blanks(text)), "{}: lacks {text:?}", self.name);
        }
    }

    /// This text does not.
    pub fn lacks(&self, text: &str) {
        assert!(!self.text.contains(&without_blanks(text)), "{}: has {text:?}", self.name);
    }

    /// This text stands on each page.
    pub fn has_on_every_page(&self, text: &str) {
        for (page, number) in self.pages.iter().zip(1..) {
            let found = page.words.iter().any(|word| word.text == text);
            assert!(found, "{}: page {number} lacks {text:?}", self.name);
        }
    }

    /// A plausible number of pages, none empty; all words inside the margins and none over another; black on white.
    pub fn is_tidy(&self, pages: RangeInclusive<usize>) {
        assert!(pages.contains(&self.pages.len()), "{}: {} pages", self.name, self.pages.len());
        assert_eq!(self.pages.len(), self.pictures.len());
        for ((page, picture), number) in self.pages.iter().zip(&self.pictures).zip(1..) {
            let place = format!("{}, page {number}", self.name);
            let is_size = (page.width - self.paper.width).abs() < 1.0 && (page.height - self.paper.height).abs() < 1.0;
            assert!(is_size, "{place}: {} x {}", page.width, page.height);
            assert!(page.words.len() > 10, "{place}: {} words", page.words.len());
            page.keeps_its_margins(&place);
            page.has_no_overlap(&place);
            page.does_not_end_in_a_heading(&place);
            picture.is_black_on_white(&place);
        }
    }
}

impl Page {
    fn parse(layout: &str) -> Self {
        let words = layout.split("<word ").skip(1).map(|word| {
            let number = |name| attribute(word, name);
            let text = word.split_once('>').unwrap().1.split_once("</word>").unwrap().0.to_owned();
            Word { left: number("xMin"), top: number("yMin"), right: number("xMax"), bottom: number("yMax"), text }
        });
        Self { width: attribute(layout, "width"), height: attribute(layout, "height"), words: words.collect() }
    }

    /// The margins of paper.css, in which only the line at the foot stands.
    fn keeps_its_margins(&self, place: &str) {
        let (left, right, top, bottom) = (mm(20.0), self.width - mm(17.0), mm(17.0), self.height - mm(20.0));
        for Word { left: x, top: y, right: end, bottom: foot, text } in &self.words {
            assert!(*x > left - 1.0 && *end < right + 1.0, "{place}: {text:?} from {x} to {end}");
            let is_foot = *y > bottom && *foot < self.height - mm(5.0);
            assert!(*y > top - 2.0 && (*foot < bottom + 2.0 || is_foot), "{place}: {text:?} from {y} down to {foot}");
        }
    }

    /// Boxes of words are as high as their font, which is more than their letters: their middles must not touch.
    fn has_no_overlap(&self, place: &str) {
        for (position, one) in self.words.iter().enumerate() {
            for other in &self.words[position + 1..] {
                let middle = |word: &Word| {
                    let spare = (word.bottom - word.top) * 0.3;
                    (word.top + spare, word.bottom - spare)
                };
                let ((top, bottom), (other_top, other_bottom)) = (middle(one), middle(other));
                let beside = one.right < other.left + 0.7 || other.right < one.left + 0.7;
                let apart = bottom < other_top || other_bottom < top;
                assert!(beside || apart, "{place}: {:?} and {:?} overlap", one.text, other.text);
            }
        }
    }

    /// The last line above the foot has small letters. The stamp, which is written downwards, is higher than any line.
    fn does_not_end_in_a_heading(&self, place: &str) {
        let bottom = self.height - mm(20.0);
        let lines = self.words.iter().filter(|word| word.bottom < bottom + 2.0 && word.bottom - word.top < mm(10.0));
        let last = lines.max_by(|one, other| one.bottom.total_cmp(&other.bottom)).unwrap();
        let height = last.bottom - last.top;
        assert!(height < 14.0, "{place}: ends with {:?}, {height} points high", last.text);
    }
}

impl Picture {
    /// A PGM file with one byte for each pixel.
    fn parse(bytes: &[u8]) -> Self {
        let mut words = bytes.splitn(4, u8::is_ascii_whitespace);
        assert_eq!(words.next(), Some(&b"P5"[..]));
        let mut number = || std::str::from_utf8(words.next().unwrap()).unwrap().parse().unwrap();
        let (width, height): (usize, usize) = (number(), number());
        Self { width, pixels: bytes[bytes.len() - width * height..].to_vec() }
    }

    fn is_black_on_white(&self, place: &str) {
        let of_1000 = |is: fn(u8) -> bool| {
            let count = self.pixels.iter().filter(|pixel| is(**pixel)).count();
            count * 1000 / self.pixels.len()
        };
        assert!(of_1000(|pixel| pixel < 90) >= 1, "{place}: there is nothing black on it");
        assert!(of_1000(|pixel| pixel > 250) > 750, "{place}: most of it is not white");
        // 6 mm, where printers cannot print.
        let edge = 17;
        let (width, height) = (self.width, self.pixels.len() / self.width);
        for (position, pixel) in self.pixels.iter().enumerate() {
            let (x, y) = (position % width, position / width);
            let is_edge = x < edge || y < edge || x + edge >= width || y + edge >= height;
            assert!(!is_edge || *pixel > 250, "{place}: something is at {x}, {y}");
        }
    }
}

/// A folder that goes with the test, or stays where someone wants to look at it.
enum Folder {
    Kept(PathBuf),
    Gone(TempDir),
}

impl Folder {
    fn new(name: &str) -> Self {
        match env::var_os("HSM_KMS_TEST_PAPER") {
            Some(kept) => {
                let path = Path::new(&kept).join(name);
                let _ = fs::remove_dir_all(&path);
                fs::create_dir_all(&path).unwrap();
                Self::Kept(path)
            }
            None => Self::Gone(tempfile::tempdir().unwrap()),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Gone(folder) => folder.path(),
        }
    }
}

/// The number in `name="..."`.
fn attribute(text: &str, name: &str) -> f64 {
    let (_, rest) = text.split_once(&format!("{name}=\"")).unwrap();
    rest.split_once('"').unwrap().0.parse().unwrap()
}

fn without_blanks(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Millimetres in points.
fn mm(millimetres: f64) -> f64 {
    millimetres * 72.0 / 25.4
}

/// Runs it to a good end; what it wrote.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; run scripts/test-parts"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
