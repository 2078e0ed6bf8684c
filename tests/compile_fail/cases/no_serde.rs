use manyhands::prelude::*;

fn main() {
    struct Plain(u32);
    let pool = Pool::processes(2).unwrap();
    let _ = pool.map(|plain: Plain| plain.0, [Plain(1)]);
}
