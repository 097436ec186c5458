/*
 * Which instruction sets the guest's CPUID offers.
 */
#ifndef FONDA_TESTS_DIFF_OFFERED_H
#define FONDA_TESTS_DIFF_OFFERED_H

#include <Zydis/Zydis.h>
#include <stdbool.h>

bool offered_by_guest(ZydisISASet set);

#endif
