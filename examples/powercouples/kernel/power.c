/* Powers in base 10^18.
 *
 * In a base that is a power of ten, the decimal digits can be read off the limbs. A binary number has to be converted
 * first, and the conversion costs several times what the power does; this is where the kernel saves.
 *
 * The power is built from the top bit of b down: square, then multiply by a if the bit is set. Numbers are arrays of
 * limbs below 10^18, the lowest first. */

#include "power.h"

#include <stddef.h>
#include <stdlib.h>

typedef unsigned __int128 u128;

#define GREATEST 100000u
#define LIMB_DIGITS 18
#define BASE UINT64_C(1000000000000000000)

/* ---- Carrying ------------------------------------------------------------------------------------------------- */

/* A compiler turns a 128-bit division into a call of a slow function. The method of Möller and Granlund ("Improved
 * division by invariant integers", 2011, algorithm 4) takes two multiplications instead. It wants a divisor whose top
 * bit is set, and BASE has 60 bits; RECIPROCAL is floor((2^128 - 1) / DIVISOR) - 2^64. */
#define SHIFT 4
#define DIVISOR (BASE << SHIFT)
#define RECIPROCAL ((uint64_t)(~(u128)0 / DIVISOR - ((u128)1 << 64)))

/* Divides *column by BASE. The quotient takes its place, the remainder is returned. */
static inline uint64_t carry(u128 *column)
{
    uint64_t high = (uint64_t)(*column >> 64);
    uint64_t low = (uint64_t)*column;
    uint64_t high_quotient = high / BASE;
    high %= BASE;

    /* With high < BASE, the rest of the quotient fits 64 bits, as algorithm 4 demands. */
    uint64_t u1 = high << SHIFT | low >> (64 - SHIFT);
    uint64_t u0 = low << SHIFT;
    u128 estimate = (u128)RECIPROCAL * u1 + ((u128)u1 << 64 | u0);
    uint64_t quotient = (uint64_t)(estimate >> 64) + 1;
    uint64_t remainder = u0 - quotient * DIVISOR;
    if (remainder > (uint64_t)estimate) {
        quotient--;
        remainder += DIVISOR;
    }
    if (remainder >= DIVISOR) {
        quotient++;
        remainder -= DIVISOR;
    }
    *column = (u128)high_quotient << 64 | quotient;
    return remainder >> SHIFT;
}

/* ---- Squaring ------------------------------------------------------------------------------------------------- */

/* How many products x * 2y of limbs a column takes before it has to be carried: 128 of them, the square in the middle
 * and what came over from the last column stay below 2^128. */
#define PRODUCTS 128

/* to[0..2n] = from[0..n]^2, column by column: about n^2 / 2 products, but only one division for each limb. */
static void square_columns(uint64_t *restrict to, const uint64_t *restrict from, size_t n)
{
    u128 column = 0;
    for (size_t k = 0; k < 2 * n - 1; k++) {
        /* The sum of from[i] * from[j] with i + j = k. All but the one with i = j come twice. */
        size_t i = k < n ? 0 : k - n + 1;
        size_t j = k - i;
        u128 carried = 0;
        while (i < j) {
            size_t end = i + PRODUCTS;
            for (; i < j && i < end; i++, j--)
                column += (u128)from[i] * (2 * from[j]);
            if (i < j) {
                uint64_t kept = carry(&column);
                carried += column;
                column = kept;
            }
        }
        if (i == j)
            column += (u128)from[i] * from[i];
        to[k] = carry(&column);
        column += carried;
    }
    to[2 * n - 1] = (uint64_t)column;
}

/* to[0..n] = |x[0..n] - y[0..m]| for m <= n. */
static void distance(uint64_t *restrict to, const uint64_t *x, size_t n, const uint64_t *y, size_t m)
{
    int64_t borrow = 0;
    for (size_t k = 0; k < n; k++) {
        int64_t limb = (int64_t)x[k] - (k < m ? (int64_t)y[k] : 0) - borrow;
        borrow = limb < 0;
        to[k] = (uint64_t)(limb + borrow * (int64_t)BASE);
    }
    if (!borrow)
        return;
    /* y was the greater, and what stands there is BASE^n - (y - x). */
    borrow = 0;
    for (size_t k = 0; k < n; k++) {
        int64_t limb = -(int64_t)to[k] - borrow;
        borrow = limb < 0;
        to[k] = (uint64_t)(limb + borrow * (int64_t)BASE);
    }
}

/* From this length on Karatsuba's method is the faster one. By measurement; any length from 48 to 96 does as well. */
#define KARATSUBA_FROM 64

/* Limbs that squaring n of them takes besides: n + 2 or less on this level, half as many on the next, and so on. */
#define SCRATCH(n) (2 * (n) + 64)

/* to[0..2n] = from[0..n]^2.
 *
 * With from = low + high * BASE^half, the middle of the square is 2 * low * high = low^2 + high^2 - (low - high)^2.
 * So three squares of half the length do the work of four. */
static void square(uint64_t *restrict to, const uint64_t *restrict from, size_t n, uint64_t *restrict scratch)
{
    if (n < KARATSUBA_FROM) {
        square_columns(to, from, n);
        return;
    }
    size_t half = n - n / 2;
    const uint64_t *low = from, *high = from + half;
    uint64_t *middle = scratch;
    scratch += 2 * half + 1;

    distance(to, low, half, high, n - half); /* kept where later the result will be */
    square(middle, to, half, scratch);
    square(to, low, half, scratch);
    square(to + 2 * half, high, n - half, scratch);

    int64_t over = 0; /* -1, 0, 1 or 2; not negative at the end, because the middle is not */
    for (size_t k = 0; k < 2 * half; k++) {
        int64_t limb = (int64_t)to[k] - (int64_t)middle[k] + over;
        if (k < 2 * (n - half))
            limb += (int64_t)to[2 * half + k];
        over = limb < 0 ? -1 : limb / (int64_t)BASE;
        middle[k] = (uint64_t)(limb - over * (int64_t)BASE);
    }
    middle[2 * half] = (uint64_t)over;

    uint64_t up = 0;
    for (size_t k = 0; half + k < 2 * n; k++) {
        uint64_t limb = to[half + k] + (k <= 2 * half ? middle[k] : 0) + up;
        up = limb / BASE;
        to[half + k] = limb % BASE;
    }
}

/* ---- The power ------------------------------------------------------------------------------------------------ */

/* limbs[0..n] *= factor, for a factor below BASE; returns the new length. */
static size_t scale(uint64_t *limbs, size_t n, uint64_t factor)
{
    u128 column = 0;
    for (size_t k = 0; k < n; k++) {
        column += (u128)limbs[k] * factor;
        limbs[k] = carry(&column);
    }
    if (column)
        limbs[n++] = (uint64_t)column;
    return n;
}

static int count_digits(uint64_t number)
{
    int digits = 0;
    for (; number; number /= 10)
        digits++;
    return digits;
}

/* The digit sum of a limb, by Legendre: n - 9 * (n / 10 + n / 100 + ...). Digit by digit, each division would have to
 * wait for the one before; these do not. */
static uint64_t sum_digits(uint64_t n)
{
    uint64_t quotients = n / 10 + n / 100 + n / 1000 + n / 10000 + n / 100000 + n / 1000000 + n / 10000000
                         + n / 100000000 + n / 1000000000 + n / 10000000000 + n / 100000000000
                         + n / 1000000000000 + n / 10000000000000 + n / 100000000000000
                         + n / 1000000000000000 + n / 10000000000000000 + n / 100000000000000000;
    return n - 9 * quotients;
}

int power_couple(uint32_t a, uint32_t b, uint64_t *digits, uint64_t *digit_sum)
{
    if (a < 1 || a > GREATEST || b < 1 || b > GREATEST)
        return POWER_OUT_OF_RANGE;

    /* Factors of ten only append zeros. */
    uint64_t zeros = 0;
    for (; a % 10 == 0; a /= 10)
        zeros += b;

    /* a^b has at most count_digits(a) * b digits, and a square is written with one limb more than it may need. */
    size_t room = (size_t)count_digits(a) * b / LIMB_DIGITS + 2;
    uint64_t *block = malloc((2 * room + SCRATCH(room)) * sizeof *block);
    if (!block)
        return POWER_OUT_OF_MEMORY;
    uint64_t *limbs = block, *squared = block + room, *scratch = block + 2 * room;

    int bits_left = 0;
    for (uint32_t rest = b; rest > 1; rest /= 2)
        bits_left++;
    limbs[0] = a;
    size_t n = 1;
    while (bits_left-- > 0) {
        square(squared, limbs, n, scratch);
        n = squared[2 * n - 1] ? 2 * n : 2 * n - 1;
        uint64_t *swap = limbs;
        limbs = squared;
        squared = swap;
        if (b >> bits_left & 1)
            n = scale(limbs, n, a);
    }

    uint64_t sum = 0;
    for (size_t k = 0; k < n; k++)
        sum += sum_digits(limbs[k]);
    *digits = (n - 1) * LIMB_DIGITS + (uint64_t)count_digits(limbs[n - 1]) + zeros;
    *digit_sum = sum;
    free(block);
    return POWER_OK;
}
