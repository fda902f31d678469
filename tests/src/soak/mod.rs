//! What `nacre-soak` records while containers come and go for hours, and how it finds that something grows:
//! [`figures`] reads, [`trend`] judges. The program itself has what comes and goes.

pub mod figures;
pub mod trend;
