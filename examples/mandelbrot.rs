//! The Mandelbrot set, rendered in place: workers write the rows of one shared image.
//!
//! `cargo run --release --example mandelbrot -- 600 400 processes:4 mandelbrot.png`
//!
//! Width, height, engine and file may be left out from the end. The last line that it prints is the
//! same on every engine.

mod common;

use std::fs::File;
use std::io::BufWriter;
use std::time::Instant;

use common::Arguments;
use manyhands::SharedArray;
use manyhands::prelude::*;

const USAGE: &str = "mandelbrot [WIDTH] [HEIGHT] [ENGINE] [FILE]

WIDTH and HEIGHT are in pixels, 600 and 400 by default.
ENGINE is serial, threads[:N], processes[:N] or forked[:N], with N workers; processes by default.
FILE is the PNG to write; without it none is written.";

/// After this many steps a point counts as inside.
const STEPS: u32 = 500;

/// What is shown: the middle, and how many units of the plane the image is high.
const CENTRE: (f64, f64) = (-0.7, 0.0);
const HEIGHT: f64 = 2.4;

/// Returns after how many steps the point leaves the circle of radius 2; `None` if it does not.
fn escape(x: f64, y: f64) -> Option<u32> {
    let (mut re, mut im) = (0.0_f64, 0.0_f64);
    for step in 0..STEPS {
        let (re2, im2) = (re * re, im * im);
        if re2 + im2 > 4.0 {
            return Some(step);
        }
        (re, im) = (re2 - im2 + x, 2.0 * re * im + y);
    }
    None
}

/// Returns black inside, and outside a colour for each number of steps. It uses whole numbers, so
/// that the colour is the same everywhere.
fn colour(steps: Option<u32>) -> [u8; 3] {
    steps.map_or([0; 3], |steps| {
        [30, 60, 130].map(|start| {
            let turn = (14 * steps + start) % 510;
            u8::try_from(turn.min(510 - turn)).unwrap_or(u8::MAX)
        })
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = Arguments::new(USAGE);
    let (width, height) = (
        arguments.number("WIDTH", 600),
        arguments.number("HEIGHT", 400),
    );
    let (pool, file) = (arguments.pool(), arguments.word().unwrap_or_default());
    arguments.end();

    let start = Instant::now();
    let mut image = SharedArray::<u8>::zeros(width * height * 3)?;
    // A function for worker processes captures nothing but what `closure!` names: the size.
    let paint = closure!([width, height] |row: usize, pixels: &mut [u8]| {
        let (width, height) = (*width as f64, *height as f64);
        let scale = HEIGHT / height;
        let y = CENTRE.1 + (row as f64 + 0.5 - height / 2.0) * scale;
        for (column, pixel) in pixels.chunks_exact_mut(3).enumerate() {
            let x = CENTRE.0 + (column as f64 + 0.5 - width / 2.0) * scale;
            pixel.copy_from_slice(&colour(escape(x, y)));
        }
    });
    pool.for_each_chunk(&mut image, width * 3, paint)?;
    let time = start.elapsed();

    // No worker writes any more: from here on the image is a plain slice.
    let image = image.freeze()?;
    if !file.is_empty() {
        let out = BufWriter::new(File::create(&file)?);
        let mut encoder = png::Encoder::new(out, u32::try_from(width)?, u32::try_from(height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(&image)?;
        eprintln!("written to {}", file.display());
    }
    eprintln!(
        "{width} x {height} on {} in {time:.2?}",
        pool.engine().kind()
    );
    let inside = image
        .chunks_exact(3)
        .filter(|pixel| pixel == &[0; 3])
        .count();
    // FNV-1a.
    let checksum = image.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    println!("{inside} points inside, checksum {checksum:016x}");
    Ok(())
}
