# cmake -DNM=... -DOBJECTS=a.o|b.o -P CheckKernelObjects.cmake: fails where an object that is compiled
# for one instruction set defines a weak symbol. The linker keeps one copy of such a function for
# everybody, perhaps this one, which then runs on machines that do not have these instructions.
string(REPLACE "|" ";" objects "${OBJECTS}")
if(NOT objects)
  message(FATAL_ERROR "no objects to look at")
endif()
set(found "")
foreach(object IN LISTS objects)
  execute_process(COMMAND "${NM}" --defined-only --demangle "${object}"
    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [WwVvu] [^\n]*" weak "${symbols}")
  foreach(line IN LISTS weak)
    string(REGEX REPLACE "^[^ ]* " "" symbol "${line}")
    string(APPEND found "\n  ${object}: ${symbol}")
  endforeach()
endforeach()
if(found)
  message(FATAL_ERROR "Weak symbols in objects of one instruction set; make these functions "
    "[[gnu::always_inline]], static or part of the namespace's unnamed one:${found}")
endif()
