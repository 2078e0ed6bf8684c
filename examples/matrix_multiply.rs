//! A product of two matrices: on shared arrays, tile by tile in place, beside the form that sends
//! and returns rows.
//!
//! `cargo run --release --example matrix_multiply -- 512 processes:2`
//!
//! Size and engine may be left out from the end. Both products are compared with one that this
//! process makes alone.

mod common;

use std::time::Instant;

use common::Arguments;
use manyhands::SharedArray;
use manyhands::prelude::*;

const USAGE: &str = "matrix_multiply [SIZE] [ENGINE]

SIZE is the number of rows and of columns, 512 by default.
ENGINE is serial, threads[:N], processes[:N] or forked[:N], with N workers; processes by default.";

/// Whole numbers, small enough that no sum is rounded: every order of additions gives the same.
fn element(of: usize, index: usize) -> f64 {
    ((index * (7 + of) + index / 13) % 17) as f64 - 8.0
}

/// Adds `factor` times a row to another.
fn add(to: &mut [f64], factor: f64, row: &[f64]) {
    for (sum, x) in to.iter_mut().zip(row) {
        *sum += factor * x;
    }
}

/// One row of the product.
fn row_of_product(row: &[f64], b: &[f64]) -> Vec<f64> {
    let mut product = vec![0.0; row.len()];
    for (&factor, b) in row.iter().zip(b.chunks_exact(row.len())) {
        add(&mut product, factor, b);
    }
    product
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = Arguments::new(USAGE);
    let (size, pool) = (arguments.number("SIZE", 512), arguments.pool());
    arguments.end();
    let make = |of| (0..size * size).map(move |index| element(of, index));
    let (a, b): (Vec<f64>, Vec<f64>) = (make(0).collect(), make(1).collect());

    let start = Instant::now();
    let rows = a.chunks_exact(size).map(|row| row_of_product(row, &b));
    let expected: Vec<f64> = rows.flatten().collect();
    let serial = start.elapsed();

    // Copied: each worker is sent the second matrix. Rows of the first are the items, and rows of
    // the product come back.
    let start = Instant::now();
    let rows = a.chunks_exact(size).map(<[f64]>::to_vec);
    let multiply = |b: &Vec<f64>, row: Vec<f64>| row_of_product(&row, b);
    let copied: Vec<f64> = pool.map_with(&b, multiply, rows)?.concat();
    let copying = start.elapsed();

    // Shared: the matrices lie where all workers see them, and each worker writes its tiles of the
    // product in place. What a worker is sent is handles: a few bytes.
    let a = SharedArray::from_slice(&a)?.freeze()?;
    let b = SharedArray::from_slice(&b)?.freeze()?;
    let mut product = SharedArray::<f64>::zeros(size * size)?;
    let start = Instant::now();
    let multiply = closure!([size, a, b] |mut tile: TileMut<'_, f64>| {
        let (top, left) = tile.origin();
        let (rows, columns) = (tile.nrows(), tile.ncols());
        for (row, sums) in (top..top + rows).zip(tile.rows_mut()) {
            for k in 0..*size {
                let part = &b[k * size + left..][..columns];
                add(sums, a[row * size + k], part);
            }
        }
    });
    pool.for_each_tile(&mut product, (size, size), (64, 256), multiply)?;
    let sharing = start.elapsed();

    assert!(copied == expected, "the copied product is wrong");
    assert!(
        *product.try_read()? == expected,
        "the shared product is wrong"
    );
    let ratio = copying.as_secs_f64() / sharing.as_secs_f64();
    let engine = pool.engine().kind();
    eprintln!(
        "{size} x {size} on {engine}: serial {serial:.2?}, copied {copying:.2?}, shared {sharing:.2?}"
    );
    eprintln!("copied / shared: {ratio:.2}");
    let trace: f64 = (0..size).map(|i| expected[i * size + i]).sum();
    println!("both products are right, trace {trace}");
    Ok(())
}
