"""Plots about things: lost, broken, spoilt, planted, given, quarrelled over; each a function that tells one tale."""

from __future__ import annotations

from llamita.data.tales_grammar import Tale, Thing, table
from llamita.data.tales_world import DEAR_THINGS, begin, close_tale, is_animal, open_tale, scenery


def lost_and_found(tale: Tale) -> None:
    """Something dear is lost in the way such a thing is lost, looked for, and found where that way led it."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")))
    thing = tale.pick(DEAR_THINGS)
    tale.let(thing=thing)
    open_tale(tale)
    tale.one_of(
        "{h.First} had a {thing}. It was a gift from {g}, and {h.he} [loved it dearly|took it everywhere].",
        "{g} had given {h.first} a {thing}, and {h.he} [never let it out of {h.his} sight|loved it dearly].",
        "The thing that {h.first} loved most was a {thing}. {g} had [made it for {h.him}|given it to {h.him}].",
    )
    ways = {"light": _taken_by_wind, "small": _through_a_hole, "shiny": _taken_by_magpie, "round": _rolled_away}
    way = tale.pick([ways[trait] for trait in sorted(thing.traits)] + [_left_behind])
    way(tale)
    close_tale(
        tale,
        "From that day on, {h} took better care of the {thing.noun}.",
        'That evening, {h} showed the {thing.noun} to {g}. "It has come home," said {g}.',
        "{h} fell asleep that night with the {thing} beside {h.him}.",
        '"Things can be lost," said {g}, "but good friends help us find them."',
        "And the {thing} was never lost again.",
        "{h} put the {thing} in its place, and {h.he} smiled at it before {h.he} went to sleep.",
    )


def _search(tale: Tale) -> None:
    """The friend comes, and they look where it is not."""
    tale.paragraph()
    tale.one_of(
        '{h} [began to cry|felt terrible|sat down and cried]. Then {f.first} came by. "[What is wrong|What happened|Why'
        ' are you so sad]?" {f} asked.',
        '{h} ran to {f.first}. "I have lost my {thing.noun}!" {h.he} said. "[Then we will look together|Let us find'
        ' it|Do not worry, two can look better than one]," said {f}.',
        '"My {thing.noun}!" cried {h}. {F.first} heard {h.him} and came at once. "I will help you look," said {f}.',
    )
    tale.one_of(
        "They looked {place2.at}, but it was not there. They looked {place3.at}, but it was not there either.",
        "First they looked {place2.at}. They found only [an old shoe|a snail|three gray stones|a bird's egg]. Then they"
        " looked {place3.at}, and they found nothing at all.",
        "Together they searched {place3.at} and {place2.at}. They looked [under every leaf|behind every stone|high and"
        " low], but there was no {thing.noun}.",
    )


def _thanks(tale: Tale) -> None:
    tale.one_of(
        '"Thank you, {f}!" said {h}. "I could not have done it without you."',
        '{h} hugged {f}. "You are a true friend," {h} said.',
        '"You found it!" cried {h}, and {h.he} danced around {f}.',
        "{h} thanked {f} and held the {thing.noun} tight.",
        "{h} was so happy that {h.he} gave {f} a big hug.",
    )


def _taken_by_wind(tale: Tale) -> None:
    tale.paragraph()
    tale.one_of(
        "{Day}, {h} took the {thing} to {place}. Suddenly, a strong wind [came|blew over the hill]. It"
        " [pulled|tore|took]"
        " the {thing.noun} out of {h.his} hands and carried it away.",
        "{Day}, {h} was playing {place.at} when the wind began to blow. [Whoosh! Up went the {thing.noun}|It lifted the"
        " {thing.noun} into the sky], over the [bushes|grass|trees], and out of sight.",
    )
    _search(tale)
    tale.paragraph()
    up = tale.pick(("the top of a tall tree", "a thorn bush", "the branches of a pine tree", "an old apple tree"))
    tale.let(up=up)
    tale.one_of(
        '"The wind took it," said {f}, "so let us go where the wind goes." They followed the wind, and there it was:'
        " the {thing} was caught in {up}.",
        'Then {f} looked up. "There it is!" {f} said. The wind had carried the {thing.noun} into {up}.',
    )
    if tale.scope["season"] == "autumn" or tale.chance(0.5):
        tale.one_of(
            "{f} was a good climber. {f.He} went up, branch by branch, and came down with the {thing.noun}.",
            "{h} found a long stick. {h.He} reached and reached until the {thing.noun} came loose and fell into {f}'s"
            " arms.",
            "{f} stood on {h}'s shoulders, stretched as far as {f.he} could, and pulled it free.",
        )
        _thanks(tale)
    else:
        tale.say(
            "But [a small bird|a mother bird] had already [built her nest on it|put her eggs on it to keep them warm]."
        )
        tale.one_of(
            '{h} thought for a while. "Let her keep it until [her babies can fly|the eggs hatch]," {h.he} said. They'
            " waited for many days, and when the young birds flew away, {h} got the {thing.noun} back.",
            '"She needs it now," said {h}. So {h} and {f} came every day to look. When the young birds had flown away,'
            " {f} climbed up and brought the {thing.noun} down.",
        )


def _through_a_hole(tale: Tale) -> None:
    tale.let(bag="[bag|pocket|basket]")
    tale.paragraph()
    tale.one_of(
        "{Day}, {h} put the {thing.noun} in {h.his} {bag} and walked to {place}. But when {h.he} wanted to look at it,"
        " the {bag} was empty.",
        "{Day}, {h} went to {place} with the {thing} in {h.his} {bag}. When {h.he} got home, the {thing.noun} was"
        " gone!",
    )
    _search(tale)
    tale.paragraph()
    tale.one_of(
        'Then {f} looked at {h}\'s {bag}. "There is a hole in it!" said {f}. "The {thing.noun} must have fallen out on'
        ' the way."',
        '"Show me your {bag}," said {f}. {f.He} put a finger through a little hole. "Here is where it fell out!"',
    )
    tale.one_of(
        "They walked back along the path to {place}, slowly, step by step. And there, [between two stones|under a"
        " yellow"
        " leaf|in the middle of the path], lay the {thing}.",
        "So they went down the path again, looking at the ground. Near {place}, something [lay|was waiting] in the"
        " grass."
        " It was the {thing}!",
    )
    _thanks(tale)
    tale.one_of(
        "At home, {m} showed {h} how to sew, and {h} closed the hole with [strong|red|blue] thread.",
        "The next day, {h} and {m} mended the {bag}, so that nothing could fall out of it again.",
        "Then {h} took a needle and thread, and {h.he} mended the hole {h.himself}.",
    )


def _taken_by_magpie(tale: Tale) -> None:
    tale.let(swap="[a shiny bottle cap|a silver spoon|a bright piece of glass|a new tin cup]")
    tale.paragraph()
    tale.one_of(
        "{Day}, {h} put the {thing.noun} on a stone {place.at} and [went to pick flowers|waded into the water|lay down"
        " for a nap]. When {h.he} came back, the stone was bare.",
        "{Day}, the {thing.noun} was shining in the sun {place.at}. {h} turned around for a moment, and when {h.he}"
        " looked again, it was gone.",
    )
    _search(tale)
    tale.paragraph()
    tale.one_of(
        'Then {f} found a black and white feather. "A magpie was here," said {f}. "Magpies love things that shine."',
        '"Look, a black and white feather!" said {f}. "I know who took it. It was the magpie."',
    )
    tale.say(
        "They found her nest in [a tall tree|an old tree|a birch tree], and the {thing.noun} was [shining|gleaming]"
        " in it."
    )
    tale.one_of(
        '"Please give it back," called {h}. "My {g.kind} gave it to me. I will give you {swap} for it." The magpie'
        " [thought about it|tilted her head], and then she dropped the {thing.noun} into {h}'s hands.",
        '"I did not know that it was yours," said the magpie. "It was so pretty." {h} was not angry. {h.He} took the'
        " {thing.noun} and gave the magpie {swap} instead.",
    )
    _thanks(tale)


def _rolled_away(tale: Tale) -> None:
    tale.let(
        hiding="[a rabbit hole|a thick bush|a hollow log|a pile of leaves|a dark hole between two roots]",
        animal="[frog|toad|lizard|beetle|snail]",
    )
    tale.paragraph()
    tale.one_of(
        "{Day}, {h} was playing {place.at}. The {thing.noun} slipped from {h.his} hands and rolled down, down, down,"
        " faster and faster, until {h.he} could not see it anymore.",
        "{Day}, {h} dropped the {thing.noun} at the top of [the|a steep] path. Bump, bump, bump! It rolled away, and"
        " {h.he} could not catch it.",
    )
    _search(tale)
    tale.paragraph()
    tale.one_of(
        '"It rolled, so it must be at the bottom," said {f}. At the bottom of the path, there was {hiding}.',
        'Then {f} took a round stone and let it roll. "Let us follow it," said {f}. The stone rolled all the way to'
        " {hiding}.",
    )
    tale.one_of(
        "They looked inside, and there was the {thing}! A little {animal} was sleeping [next to it|on top of it]. {h}"
        " took the {thing.noun} very gently, so that the {animal} did not wake up.",
        'A little {animal} sat in front of it. "Are you looking for a {thing.noun}?" asked the {animal}. "It rolled'
        ' right into my house!" And the {animal} pushed the {thing} out.',
    )
    _thanks(tale)


def _left_behind(tale: Tale) -> None:
    tale.paragraph()
    tale.one_of(
        "{Day}, {h} played {place.at} with {f.first}. Then it began to rain hard, and they ran home.",
        "{Day}, {h} and {f.first} played {place.at} until it was nearly dark, and then they hurried home.",
    )
    tale.one_of(
        "At bedtime, {h} looked for the {thing}. It was not in {h.his} bed, and it was not under {h.his} bed.",
        "Only at bedtime did {h} see that the {thing} was not there. {h.He} could not sleep without it.",
    )
    tale.one_of(
        '"Think," said {m}. "Where did you have it last?" {h} thought hard. "{Place.at}!" {h.he} said.',
        '"Where were you today?" asked {m}. {h} closed {h.his} eyes and went through the whole day in {h.his} head.'
        ' "I put it down {place.at}!" {h.he} cried.',
    )
    tale.paragraph()
    if tale.chance(0.5):
        tale.one_of(
            "Early the next morning, {h} ran back with {f}. The {thing.noun} was not there, but there were small"
            " tracks in"
            " the mud. They followed the tracks and met {e.first}.",
            "In the morning, {h} and {f} went back, but somebody had been there first. It was {e.first}.",
        )
        tale.one_of(
            '"I found your {thing.noun} last night," said {e}. "I took it home so that it would stay dry."',
            '"Is this {thing.noun} yours?" asked {e}. "I saw it last night and kept it safe for you."',
        )
        tale.one_of(
            '"Thank you, {e}!" said {h}, and the next day {h.he} brought {e} [some flowers|a cake|a basket of'
            " berries].",
            "{h} thanked {e} again and again.",
        )
    else:
        tale.one_of(
            "Early the next morning, {h} and {f} went back to {place}. There lay the {thing.noun}, wet and cold, just"
            " where {h} had put"
            " it down.",
            "As soon as it was light, {h} ran to {place}, and {f} ran too. The {thing.noun} was still there, with a"
            " [ladybug|drop of dew|small snail] on it.",
        )
        tale.one_of(
            '{h} dried it and held it close. "I will never forget you again," {h.he} said.',
            "{h} carried it home and put it by the fire until it was dry and warm.",
        )


# thing, who needs it, what is wrong, what makes it good again, what it does when mended
_BROKEN_THINGS = table("""
clock / It had not ticked for years / a bent wheel inside / tick, tock, said the clock
music box / It would not play any more / a grain of sand between its wheels / it played a soft little tune
cart / One of its wheels had come off / a bent pin / it rolled along as if it were new
boat / It had a hole in its side / a rotten board / it floated like a duck
swing / It hung from only one rope / a worn rope / it flew up as high as the leaves
lantern / It gave no light / a cracked pipe for the oil / it glowed like a small sun
well pump / Not one drop came out of it / a little nest of leaves in its pipe / clear water ran out of it
bench / One of its legs was broken / a loose peg / it stood as firm as a rock
weather vane / It was stuck and always said north / some rust / it turned happily in the wind
wheelbarrow / It squeaked and would not roll / a dry and crooked wheel / it rolled without a sound
""")


def broken_thing(tale: Tale) -> None:
    """An old thing is broken; the first try fails, advice or a look inside shows why, the second one works."""
    begin(tale)
    noun, symptom, fault, works = tale.pick(_BROKEN_THINGS)
    tale.let(thing=f"[old|wooden|green|big] {noun}", noun=noun, fault=fault)
    tale.let(glue="[glue|string|a nail|a strip of cloth]")
    open_tale(tale, tale.pick(("", "patient", "curious", "good with tools")))
    tale.one_of(
        f"{{E.first}} had a {{thing}}. {symptom}.",
        f"Behind {{e.first}}'s house stood a {{thing}}. {symptom}.",
        f"{{E.first}} was sad about the {{thing}}. {symptom}.",
    )
    tale.one_of(
        '"It is too old," said {e}. "I will have to throw it away."',
        '"Nobody can mend it," said {e}.',
        '"My father gave it to me when I was small," said {e}. "I wish it could be mended."',
    )
    tale.one_of(
        '"[May I|Can I] try?" asked {h.first}.',
        '{h.First} looked at it for a long time. "Let me try," {h.he} said.',
        '"I would like to mend it," said {h.first}, and {h.he} rolled up {h.his} sleeves.'
        if not is_animal(tale)
        else '"I would like to mend it," said {h.first}, and {h.his} eyes shone.',
    )
    tale.paragraph()
    tale.one_of(
        "First {h} used {glue}. It looked fine, but [after one minute|before long] it was as bad as before.",
        "{h} tried {glue} and hoped for the best. It did not help at all.",
        "{h} shook it and knocked on it, but nothing happened. Then {h.he} used {glue}, and that did not help either.",
    )
    tale.one_of("{h} [was cross|was sad|sighed] and wanted to give up.", '"I will never do it," {h} [said|sighed].', "")
    if tale.chance(0.5):
        tale.one_of(
            '"Do not hurry," said {g}. "First find out what is wrong."',
            '{F.first} came to see. "Did you look inside?" {f.he} asked.',
            '"Look first, and work later," said {m}.',
        )
        tale.one_of(
            "So {h} looked again, slowly and with care, and {h.he} found {fault}.",
            "{h} took it apart, piece by piece. At last {h.he} saw it: {fault}!",
        )
    else:
        tale.say("But that night {h} could not stop thinking about it.")
        tale.one_of(
            "In the morning, {h.he} took the {noun} apart and laid every piece on the grass. Then {h.he} saw it:"
            " {fault}!",
            "The next day {h.he} looked at it from below, and there {h.he} saw {fault}.",
        )
    tale.paragraph()
    tale.one_of(
        "{h} worked all afternoon. {h.He} cleaned, bent, and turned, and put everything back in its place.",
        '"So that is it!" said {h}. It took only a little work to put that right.',
        "{h} and {f.first} worked on it until the sun went down.",
    )
    tale.say(f"Then {{h}} tried it, and {works}!" if tale.chance(0.6) else f"At last it was done, and {works}.")
    tale.one_of(
        '{e} clapped and laughed. "You have given me back my {noun}!" {e.he} said.',
        "{e} could hardly believe it. There were tears of joy in {e.his} eyes.",
        '"Well done, {h}!" said {e}. "Come and use it whenever you like."',
        '"How did you do it?" asked {e}. "I looked first," said {h}.',
    )
    close_tale(
        tale,
        "After that, everyone brought their broken things to {h}.",
        "{h} had learned that looking is half of mending.",
        "And every time {h} passed by, the {noun} seemed to say thank you.",
        "The {noun} lasted for many years, and {e} always said who had mended it.",
        "Old things, {h} thought, only need someone who does not give up.",
    )


# the thing, its owner's use for it, how it came to harm, what the hero does to mend it
_MISHAPS = table("""
blue vase / ran through the room / knocked over the blue vase, and it broke into three pieces / glued the three pieces
    together
jar of honey / reached for the top shelf / pulled down the jar of honey, and it broke on the floor / washed the floor
    and went to find new honey
row of tulips / chased a butterfly / stepped on the row of tulips, and their stems snapped / planted new tulips in a
    straight row
white tablecloth / carried the berries too fast / spilled red juice all over the white tablecloth / washed the
    tablecloth until it was white again
window / threw a ball against the wall / hit the window, and the glass cracked from top to bottom / carried wood every
    day to pay for new glass
garden fence / swung on the little gate / broke two boards of the garden fence / cut two new boards and painted them
tower of cups / danced around the kitchen / bumped into the tower of cups, and four of them broke / made four new cups
    out of clay
big umbrella / jumped off the wall with it / bent the big umbrella until it looked like a dead spider / straightened
    every rib of the umbrella
""")


def mistake_mended(tale: Tale) -> None:
    """A careless moment spoils something; hidden, told at once, or blamed on another, it is owned up to and made"
    " good."""
    thing, careless, harm, repair = tale.pick(_MISHAPS)
    outdoors = "tulips" in thing or "tablecloth" in thing
    begin(tale, season=tale.pick(("spring", "summer")) if outdoors else None)
    tale.let(thing=thing, owner=tale.scope[tale.pick(("m", "g", "e"))])
    open_tale(tale, tale.pick(("", "", "quick", "lively", "always in a hurry")))
    tale.one_of(
        f"{{Day}}, {{h.first}} {careless}, even though {{owner.first}} had said not to. {{h.He}} {harm}.",
        f"{{Day}}, {{h.first}} was not careful. {{h.He}} {careless} and {harm}. It belonged to {{owner.first}}.",
        f'{{Day}}, {{h.first}} {careless}. "Be careful!" called {{owner.first}}, but it was too late. {{h}} {harm}.',
    )
    tale.one_of("Oh no!", "{h} stood very still.", "{h}'s heart beat fast.", "What would {owner} say?")
    tale.paragraph()
    branch = tale.pick(("hides", "tells", "blamed"))
    if branch == "hides":
        _hide_it(tale)
    elif branch == "tells":
        tale.one_of(
            '{h} wanted to run away, but {h.he} did not. {h.He} went straight to {owner}. "I did it," {h.he} said. "I'
            ' was not careful, and I am sorry."',
            '{h} took a deep breath and went to find {owner}. "Something bad happened," {h.he} said, "and it was my'
            ' fault."',
        )
    else:
        tale.one_of(
            'When {owner} saw the {thing}, {f.first} was standing right there. "{f}! Did you do this?" asked {owner}.'
            " {f} shook {f.his} head, but {owner} did not look sure.",
            '{owner} came in and saw {f.first} next to the {thing}. "Oh, {f}, how could you?" said {owner}.',
        )
        tale.one_of(
            'It would have been easy for {h} to say nothing. But {f} looked so sad. "It was not {f}," said {h}. "It was'
            ' me."',
            '{h} could not bear it. "Stop!" {h.he} said. "{f} did nothing. I did it."',
        )
    tale.paragraph()
    tale.one_of(
        '{owner} was quiet for a moment. "Thank you for telling me," {owner.he} said. "That was brave. Now, how can we'
        ' make it right?"',
        '{owner} looked at {h} kindly. "Everyone makes mistakes," {owner.he} said. "What matters is what you do next."',
        '"I am sad about it," said {owner}, "but I am glad that you told me the truth."',
    )
    tale.one_of(
        f"So {{h}} {repair}. It took a long time, but {{h.he}} did not stop until it was done.",
        f"The next day, {{h}} {repair}." + (" {f} came to help." if branch != "hides" else ""),
        f"{{h}} thought about it, and then {{h.he}} {repair}, all by {{h.himself}}.",
    )
    tale.one_of(
        'When {owner} saw it, {owner.he} smiled. "I like it even better now," {owner.he} said.',
        '"Well done," said {owner}, and {owner.he} gave {h} a hug.',
        '"It is as good as new," said {owner}. "Almost!" And they both laughed.',
    )
    if branch == "blamed":
        tale.one_of('"I am sorry, {f}," said {owner} and {h} together.', "And {f} was the first to forgive {h}.")
    close_tale(
        tale,
        "After that, {h} was much more careful.",
        "{h} had learned that the truth feels lighter than a secret.",
        "{h} slept well that night, because there was nothing left to hide.",
        "A mistake is not the end, {h} thought, if you mend it.",
    )


def _hide_it(tale: Tale) -> None:
    tale.let(hiding="[under the bed|behind the curtain|in the shed|under an old blanket|behind a bush]")
    tale.one_of(
        "{h} was afraid, so {h.he} ran away and hid {hiding}. But {h.he} could not be happy there. {h.His} stomach"
        " hurt,"
        " and the hours were long.",
        "Nobody had seen it. {h} hid {hiding} and said nothing. At supper {h.he} could not eat, and at night {h.he}"
        " could"
        " not sleep.",
    )
    tale.one_of(
        '"What is the matter, {h}?" asked {owner}. Then {h} began to cry. "It was me," {h.he} said. "I am so sorry."',
        'At last {h} went to {owner}. "I have to tell you something," {h.he} said in a small voice, and {h.he} told'
        " {owner} everything.",
    )


# the plant, how it looks when it comes up, what it gives, what is done with it
_SEEDS = table("""
sunflower / a green stem as thick as a thumb / a yellow flower as big as a plate / fed its seeds to the birds
pumpkin / a long green vine / a fat orange pumpkin / made pumpkin soup for everyone
tomato / a small hairy plant / round red tomatoes / ate the tomatoes like apples
pea / a curly green shoot / fat green pods / sat in the sun and opened the pods
bean / a curly green plant / more beans than {h.he} could count / cooked the beans in a big pot
rose / a small thorny bush / a red rose that smelled of honey / gave the rose to {g}
melon / a plant with wide leaves / a melon as round as the moon / cut the melon into many slices
strawberry / a small plant with white flowers / sweet red strawberries / ate the strawberries with cream
carrot / a feathery green top / the longest carrot anyone had ever seen / made a big carrot cake
""")


def seed_grows(tale: Tale) -> None:
    """A seed is planted and waited for; impatience, a drought or a bird comes between, and care brings the fruit."""
    begin(tale, season="spring")
    plant, sprout, fruit, use = tale.pick(_SEEDS)
    unknown = tale.chance(0.35)
    tale.let(plant=plant, sprout=sprout, giver=tale.scope[tale.pick(("g", "e", "m"))])
    open_tale(tale, tale.pick(("", "", "impatient", "full of questions")))
    if unknown:
        tale.one_of(
            '{Day}, {h.first} found a strange seed {place.at}. "What will it be?" {h.he} asked. "Plant it and see,"'
            " said"
            " {giver.first}.",
            '{Day}, {giver.first} gave {h.first} a seed. "I will not tell you what it is," said {giver}. "You will'
            ' see."',
        )
    else:
        tale.one_of(
            '{Day}, {giver.first} gave {h.first} a {plant} seed. "If you take care of it," said {giver}, "it will take'
            ' care of you."',
            "{Day}, {h.first} got a {plant} seed from {giver.first}. It was so small that {h.he} could hardly see it.",
        )
    tale.one_of(
        "{h} dug a little hole, put the seed in, and covered it with soft earth.",
        "{h} planted it in a sunny spot, not too far from home, and {h.he} gave it some water.",
    )
    scenery(tale)
    tale.paragraph()
    tale.one_of(
        'The next morning {h} ran out to look. Nothing. The day after that, still nothing. "Maybe it is asleep," said'
        " {h}.",
        "Every day {h} watered it, and every day there was only brown earth.",
        '{h} waited one day, two days, three days. "Why does it take so long?" {h.he} asked. "Good things are slow,"'
        " said {giver}.",
    )
    trouble = tale.pick(("doubt", "forgot", "dry", "dig"))
    _seed_trouble(tale, trouble)
    tale.paragraph()
    tale.one_of(
        "Then, one morning, there it was: {sprout}! It grew a little every day.",
        "One morning, after a warm rain, {h} saw something green. It was {sprout}.",
        "And one day the earth opened, and {sprout} came up.",
    )
    name = f"It was a {plant} plant! " if unknown else ""
    tale.say(f"When summer came, it gave {fruit}." if not unknown else f"{name}When summer came, it gave {fruit}.")
    tale.one_of(
        f"{{h}} and {{f.first}} {use}.",
        f"{{h}} called everyone together, and they {use}.",
        f"{{h}} was so proud that {{h.he}} could not stop smiling. They {use}.",
    )
    if trouble == "doubt":
        tale.one_of("Even {f} had to say that {h} had been right.", '"I was wrong," said {f}. "It was worth the wait."')
    elif trouble in ("forgot", "dry"):
        tale.one_of("The biggest part was for {f}, who had helped.", '"Half of this is yours, {f}," said {h}.')
    close_tale(
        tale,
        "And {h} kept one small seed, to plant it next spring.",
        "Good things are slow, {h} thought, but they come.",
        "In the autumn {h} gave a seed to {f}, and so it began again.",
        '"Who made it grow?" asked {giver}. "The sun, the rain, and I," said {h}.',
    )


def _seed_trouble(tale: Tale, trouble: str) -> None:
    if trouble == "doubt":
        tale.one_of(
            '{F.first} laughed. "Nothing will ever grow there," said {f}. But {h} did not give up.',
            '"That is not a seed, it is only a stone," said {f.first}. {h} watered it all the same.',
        )
    elif trouble == "forgot":
        tale.one_of(
            "Then {h} had to stay in bed with a cold, and {h.he} could not water it. {h.He} worried about the seed"
            " all day."
            " But {f.first} had not forgotten. {f} came every evening with a can of water.",
            'Then {h} went to visit {e.first} for a week. Who would water the seed? "I will," said {f.first}, and'
            " {f.he} did, every single day.",
        )
    elif trouble == "dry":
        tale.one_of(
            "Then it did not rain for many weeks, and the ground became as hard as stone. {h} and {f.first} carried"
            " water"
            " from the stream, one cup at a time.",
            "It was a dry spring. The sun burned, and the earth cracked. So {h} and {f.first} put a roof of leaves over"
            " the little seed and carried water to it every night.",
        )
    else:
        tale.one_of(
            '{h} could not wait any longer and wanted to dig it up. "Stop!" said {giver}. "If you look at it, it cannot'
            ' grow." So {h} sang to it instead.',
            '{h} took a spoon to dig it up and see. But then {h.he} stopped. "I will trust it," {h.he} said, and'
            " {h.he} put the spoon away.",
        )


# the thing, with an adjective, how two share it
_QUARREL_THINGS = table("""
sled / red sled / ride together, one in front and one behind
ball / new ball / throw it to each other
boat / small boat / sail together, one with the oar and one with the net
kite / long kite / fly it together, one with the string and one with the tail
wagon / blue wagon / take turns, one pulling and one riding
drum / big drum / play together, one with each stick
seesaw / wooden seesaw / sit down, one at each end
rope / long rope / turn it together, one at each end
""")


def quarrel(tale: Tale) -> None:
    """Two friends want the same thing, part in anger, find that alone it is no good, and make peace."""
    noun, phrase, together = tale.pick(_QUARREL_THINGS)
    begin(tale, season="winter" if noun == "sled" else None)
    tale.let(thing=Thing(noun, phrase, frozenset()), together=together)
    open_tale(tale)
    tale.one_of(
        "{h.First} and {f.first} were best friends. They did everything together.",
        "{h.First} and {f.first} were always together, in the sun and in the rain.",
        "Every day {h.first} played with {f.first}, and every day they laughed a lot.",
    )
    tale.say("{Day}, they found a {thing} {place.at}.")
    scenery(tale, 0.2)
    tale.one_of(
        '"I saw it first!" said {h}. "No, I did!" said {f}.',
        '"It is mine!" said {f}. "No, it is mine!" said {h}. They pulled and pulled.',
        "{h} wanted it, and {f} wanted it too. They shouted at each other.",
    )
    alone, other = tale.sample(("h", "f"), 2)
    tale.let(alone=tale.scope[alone], other=tale.scope[other])
    tale.one_of(
        '"Then keep it!" said {other}, and {other.he} walked home with heavy steps.',
        'In the end {other} let go. "I do not want to be your friend anymore," {other.he} said, and {other.he} ran'
        " away.",
    )
    tale.paragraph()
    tale.one_of(
        "Now {alone} had the {thing.noun} all to {alone.himself}. But it was not much fun alone. There was nobody to"
        " laugh"
        " with.",
        "{alone} tried to play with the {thing.noun}. After a while {alone.he} sat down. It was too quiet.",
        "At first {alone} was glad. Then {alone.he} looked around, and there was nobody to share {alone.his} joy.",
    )
    tale.one_of(
        "And {other} sat at home and looked out at the sky. {other.He} was lonely too.",
        'At home, {m} asked, "Where is your friend today?" {other} did not know what to say.'
        if other == "h"
        else "Meanwhile {other} threw stones into the water, and {other.he} felt sorry.",
    )
    tale.paragraph()
    if tale.chance(0.5):
        tale.one_of(
            'So {alone} went to find {other}. "I am sorry," {alone} said. "You can have the {thing.noun}. I would'
            " rather"
            ' have you."',
            '{alone} knocked at {other}\'s door. "The {thing.noun} is no fun without you," {alone} said. "I am sorry'
            " that"
            ' I shouted."',
        )
        tale.say('"I am sorry too," said {other}.')
    else:
        tale.one_of(
            "They met halfway, because each of them was on the way to say sorry. They both began to speak at the same"
            " time,"
            " and then they both began to laugh.",
            'Then {e.first} came along and listened to them both. "A {thing.noun} is easy to find," {e.he} said. "A'
            ' friend is not." {h} and {f} looked at each other, and they were ashamed.',
        )
    tale.say('"Let us {together}!" said {f}.' if tale.chance(0.5) else '"I know! We can {together}," said {h}.')
    tale.one_of(
        "That is what they did, and it was the best fun they had ever had.",
        "And it was twice as much fun as before.",
        "They played until it was dark, and nobody shouted, except for joy.",
    )
    close_tale(
        tale,
        "After that, they shared everything, even the last [cookie|apple|nut|berry].",
        '"Mine" is a small word, they found, and "ours" is a bigger one.',
        "They never quarreled about the {thing.noun} again.",
        "Two friends, one {thing.noun}: it was just enough.",
    )


# what the others bring, what the hero can make, from what, why it was the best
_GIFTS = table("""
a necklace of acorns / acorns and a piece of string / wore it every day
a picture of the two of them / berry juice and a flat piece of bark / hung it above the bed
a little book of songs / some paper and all the songs in {h.his} head / sang from it for the rest of the year
a crown of flowers / daisies and long grass / did not take it off until bedtime
a little wooden bird / a piece of soft wood / put it where the morning sun would find it
a box of shells / an old box and the prettiest shells / listened to the shells every night
a warm pair of socks / gray wool and two sticks / wore them all winter
a lamp / an empty jar and a candle end / lit it every evening
""")


def birthday_gift(tale: Tale) -> None:
    """There is no money for a present; something made by hand, after a failed try, is the one that counts."""
    gift, stuff, use = tale.pick(_GIFTS)
    begin(tale, season="summer" if "flowers" in gift else None)
    loved = tale.pick(("f", "g", "m", "e"))
    tale.let(gift=gift, loved=tale.scope[loved], wise=tale.scope["g" if loved == "m" else "m"])
    tale.let(shop="[a drum|a new coat|a big cake|a silver cup|a box of sweets|a pair of red boots]")
    open_tale(tale, tale.pick(("", "", "kind", "quiet")))
    tale.one_of(
        "{Day}, {h.first} remembered that tomorrow was a birthday. It was the birthday of {loved.first}.",
        "{loved.First} had a birthday coming, and {h.first} wanted to give {loved.him} something special.",
        "Tomorrow was a special day for {loved.first}, and {h.first} thought hard about a birthday present.",
    )
    tale.one_of(
        "But {h} had no money, [not even one coin|not a single penny].",
        "The others were going to give {shop}. {h} had nothing at all.",
        "{h} looked in {h.his} box. There were only two buttons in it and a dry leaf.",
    )
    tale.paragraph()
    if tale.chance(0.5):
        tale.one_of(
            '"A present does not have to come from a shop," said {wise.first}. "It can come from your hands."',
            '"What do you like to do?" asked {wise.first}. "Make something that only you can make."',
        )
    else:
        tale.one_of(
            "{h} walked to {place} to think. There {h.he} had an idea.",
            '{h} sat down {place.at} and thought and thought. Then {h.he} jumped up. "I know!" {h.he} said.',
        )
    tale.one_of(
        f"{{h}} took {stuff}, and {{h.he}} worked all evening to make {{gift}}.",
        f"{{h}} looked for {stuff.replace('{h.his}', '{h.own}')}, and {{h.he}} began to make {{gift}}.",
    )
    tale.one_of(
        "The first one went wrong, and the second one was worse. The third one was just right.",
        "It was not easy. {h} had to begin again twice.",
        "{h} was so tired that {h.he} almost fell asleep over it, but {h.he} finished.",
        "",
    )
    tale.paragraph()
    tale.one_of(
        "The next day, everyone came with presents. There was {shop}, and there was [a basket of fruit|a fine"
        " hat|a soft pillow]. {h} held {h.his} present behind {h.his} back. It looked so small.",
        "At the party {h} was shy. All the other presents were so big and bright.",
        "In the morning, {h} put the present on the table, and {h.his} heart beat fast.",
    )
    tale.one_of(
        '{loved} opened the little parcel and was quiet for a moment. "You made this for me?" {loved.he} asked.',
        '"What is this?" asked {loved}. "It is {gift}. I made it," said {h}.',
    )
    tale.say(f"{{loved}} smiled, and {{loved.he}} {use}.")
    close_tale(
        tale,
        '"It was the best present of all," said {loved}.',
        "The best presents, {h} learned, are made of time.",
        "And of all the presents, that was the one {loved} never forgot.",
        "{h} was as happy as if it had been {h.his} own birthday.",
    )
