/*
 * Which instruction sets the guest's CPUID offers.
 */
#ifndef FONDA_TESTS_DIFF_FEATURES_H
#define FONDA_TESTS_DIFF_FEATURES_H

#include <Zydis/Zydis.h>
#include <stdbool.h>

bool features_offer(ZydisISASet set);

#endif
