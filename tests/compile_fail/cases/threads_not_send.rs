use manyhands::prelude::*;

fn main() {
    let pool = Pool::threads(2).unwrap();
    let _ = pool.map(|shared: std::rc::Rc<u32>| *shared, [std::rc::Rc::new(1)]);
}
