//! Which instructions the micro-kernels may use, found out once at run time.

use std::sync::OnceLock;

/// Instruction sets with a micro-kernel of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Whatever the build targets; vectors are left to the compiler.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F.
    Avx512,
    /// AVX-512F with products of bf16.
    Avx512Bf16,
}

/// An instruction set that this CPU is known to have: [`Level::detect`] and [`Level::available`] are the only sources,
/// and calls of `target_feature` functions rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level(Isa);

impl Level {
    /// The best of this CPU.
    pub(crate) fn detect() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::available().last().expect("the portable level is always there"))
    }

    /// All of this CPU, slowest first.
    pub(crate) fn available() -> impl Iterator<Item = Level> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16].into_iter().filter(|&isa| cpu_has(isa)).map(Level)
    }

    /// The instruction set.
    pub(crate) fn isa(self) -> Isa {
        self.0
    }

    /// Values in one vector.
    pub(crate) fn lanes(self) -> usize {
        match self.0 {
            Isa::Portable | Isa::Avx2 => 8,
            Isa::Avx512 | Isa::Avx512Bf16 => 16,
        }
    }

    /// Columns of a full tile, one or two vectors.
    pub(crate) fn tile_cols(self) -> usize {
        match self.0 {
            Isa::Portable => 8,
            Isa::Avx2 => 16,
            Isa::Avx512 | Isa::Avx512Bf16 => 32,
        }
    }

    /// Rows of a full tile: as many as leave the accumulators in registers.
    pub(crate) fn tile_rows(self) -> usize {
        match self.0 {
            Isa::Portable => 4,
            Isa::Avx2 => 6,
            Isa::Avx512 | Isa::Avx512Bf16 => 14,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has(isa: Isa) -> bool {
    match isa {
        Isa::Portable => true,
        Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        Isa::Avx512 => is_x86_feature_detected!("avx512f"),
        Isa::Avx512Bf16 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has(isa: Isa) -> bool {
    isa == Isa::Portable
}

/// Defines `fn name(level, args…)`, which runs `body(args…)` compiled for the level's instruction set; `body` must be
/// `#[inline(always)]`. One type parameter with one bound may follow the name.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$T:ident: $bound:ident>)? ($($arg:ident: $ty:ty),* $(,)?)
        = $body:ident;) => {
        $(#[$meta])*
        #[expect(unsafe_code, reason = "functions for a CPU feature are called after it was detected")]
        #[allow(clippy::too_many_arguments, reason = "the arguments of the body")]
        $vis fn $name $(<$T: $bound>)? (level: $crate::kernels::gemm::level::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                #[allow(clippy::too_many_arguments, reason = "the arguments of the body")]
                fn avx512 $(<$T: $bound>)? ($($arg: $ty),*) {
                    $body $(::<$T>)? ($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "the arguments of the body")]
                fn avx2 $(<$T: $bound>)? ($($arg: $ty),*) {
                    $body $(::<$T>)? ($($arg),*)
                }
                use $crate::kernels::gemm::level::Isa;
                match level.isa() {
                    // SAFETY: a `Level` is only made for instruction sets that this CPU has.
                    Isa::Avx512 | Isa::Avx512Bf16 => unsafe { avx512 $(::<$T>)? ($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx2 => unsafe { avx2 $(::<$T>)? ($($arg),*) },
                    Isa::Portable => $body $(::<$T>)? ($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = level;
                $body $(::<$T>)? ($($arg),*)
            }
        }
    };
}
pub(crate) use multiversion;

/// [`multiversion`] for a body with a second parameter, `const NATIVE: bool`: whether it may use what
/// [`Element`](crate::kernels::Element) has for CPUs that round to bf16 themselves.
macro_rules! multiversion_native {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$T:ident: $bound:ident>($($arg:ident: $ty:ty),* $(,)?)
        = $body:ident;) => {
        $(#[$meta])*
        #[expect(unsafe_code, reason = "functions for a CPU feature are called after it was detected")]
        #[allow(clippy::too_many_arguments, reason = "the arguments of the body")]
        $vis fn $name<$T: $bound>(level: $crate::kernels::gemm::level::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bf16")]
                #[allow(clippy::too_many_arguments, reason = "the arguments of the body")]
                fn avx512_bf16<$T: $bound>($($arg: $ty),*) {
                    $body::<$T, true>($($arg),*)
                }
                #[target_feature(enable = "avx512f")]
                #[allow(clippy::too_many_arguments, reason = "the arguments of the body")]
                fn avx512<$T: $bound>($($arg: $ty),*) {
                    $body::<$T, false>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "the arguments of the body")]
                fn avx2<$T: $bound>($($arg: $ty),*) {
                    $body::<$T, false>($($arg),*)
                }
                use $crate::kernels::gemm::level::Isa;
                match level.isa() {
                    // SAFETY: a `Level` is only made for instruction sets that this CPU has.
                    Isa::Avx512Bf16 if $T::PER_WORD > 1 => unsafe { avx512_bf16::<$T>($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx512 | Isa::Avx512Bf16 => unsafe { avx512::<$T>($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx2 => unsafe { avx2::<$T>($($arg),*) },
                    Isa::Portable => $body::<$T, false>($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = level;
                $body::<$T, false>($($arg),*)
            }
        }
    };
}
pub(crate) use multiversion_native;
