/* a^b, exactly: how many decimal digits it has and what they add up to. */

#ifndef POWERCOUPLES_POWER_H
#define POWERCOUPLES_POWER_H

#include <stdint.h>

/* What power_couple returns. src/kernel.rs has the same numbers. */
enum {
    POWER_OK = 0,
    POWER_OUT_OF_RANGE = 1,
    POWER_OUT_OF_MEMORY = 2,
};

/* For a and b from 1 to 100 000, writes both results and returns POWER_OK. In any other case, or if there is no memory
 * for the digits, writes nothing and returns the reason. There is no state: threads may call it at the same time. */
int power_couple(uint32_t a, uint32_t b, uint64_t *digits, uint64_t *digit_sum);

#endif
