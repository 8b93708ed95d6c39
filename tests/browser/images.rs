//! Images of all pages, for people to look at, and those of the documentation.

use std::path::{Path, PathBuf};

use super::scene::Scene;
use super::support::{Browser, Cache};

/// Names the folder for images.
const IMAGES: &str = "ONDINE_TEST_IMAGES";
/// Names of the pages that are wanted, with commas between them; all without it.
const ONLY: &str = "ONDINE_TEST_IMAGES_OF";

fn folder() -> PathBuf {
    std::env::var(IMAGES).map(PathBuf::from).unwrap_or_else(|_| panic!("{IMAGES} names no folder"))
}

/// Writes an image of each page in both themes and three widths.
#[test]
#[ignore = "needs chromium-driver; makes images to look at"]
fn images_of_every_page() {
    let folder = folder();
    let only = std::env::var(ONLY).unwrap_or_default();
    let empty = Cache::new(&[]);
    let scene = Scene::new(12_000, 200, &[]);
    let browser = Browser::start();
    let pages = [("empty", empty.ondine.url())].into_iter().chain(scene.pages());
    for (name, address) in
        pages.filter(|(name, _)| only.is_empty() || only.split(',').any(|one| one == *name))
    {
        for width in [390, 1280, 2560] {
            for dark in [false, true] {
                browser.resize(width, width * 5 / 8 + 400);
                browser.prefer_dark(dark);
                browser.open(&address);
                let theme = if dark { "dark" } else { "light" };
                let file = folder.join(format!("{name}-{width}-{theme}.png"));
                std::fs::write(file, browser.screenshot(true)).expect("written");
            }
        }
    }
    assert!(folder.read_dir().expect("the folder").count() > 0);
}

/// Makes the images of the documentation anew: `docs/images/make` runs it.
#[test]
#[ignore = "needs chromium-driver; writes into docs/images"]
fn images_of_the_documentation() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
    let scene = Scene::new(150, 20, &[]);
    let browser = Browser::start();
    for (name, dark) in [("home", false), ("path", true)] {
        let (_, address) = scene.pages().into_iter().find(|(page, _)| *page == name).expect("a page");
        browser.resize(1120, 760);
        browser.prefer_dark(dark);
        browser.open(&address);
        let image = browser.screenshot(false);
        assert!(image.len() < 200_000, "{name} has {} bytes", image.len());
        std::fs::write(folder.join(format!("{name}.png")), image).expect("written");
    }
}
